"""One method of the protocol on the device: arrays by name, launches, sums, results back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import BackendError
from unblemish.kernels.cuda.device import Device, Grid
from unblemish.kernels.device_array import DeviceArray


class Call:
    """Arrays of a call where the kernels can reach them.

    Device arrays are used in place. Host arrays are copied to scratch memory, and those that the
    call writes are copied back at its end, which alone waits for the device.

    Args:
        arrays: by the names of the protocol; None where left out.
        written: names of the arrays that are written alone. updated: those read and written.
    """

    def __init__(
        self,
        device: Device,
        arrays: Mapping[str, Any],
        *,
        written: Collection[str] = (),
        updated: Collection[str] = (),
    ) -> None:
        self._device, self._updated = device, updated
        self._back: list[tuple[NDArray[Any], int]] = []
        self.arrays: dict[str, DeviceArray | None] = {}
        for name, array in arrays.items():
            self.arrays[name] = self._place(name, array, name in written, name in updated)

    def _place(self, name: str, array: Any, written: bool, updated: bool) -> DeviceArray | None:
        if array is None or isinstance(array, DeviceArray):
            return array
        if self._device.driver.capturing:
            raise BackendError(
                f"'{name}' lies in host memory, which a CUDA graph cannot hold. Give a device "
                "array."
            )
        held = self._device.scratch(f"staged {name}", array.shape, array.dtype)
        if not written:
            self._device.upload(held, array)
        if (written or updated) and array.size:
            self._back.append((array, held.pointer))
        return held

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None or not self._back:
            return
        for host, pointer in self._back:
            self._device.driver.download(host, pointer)
        self._device.driver.synchronise()

    def launch(self, kernel: str, grid: Grid, **more: Any) -> None:
        """Launch a kernel; it finds its arrays by name, `more` comes first."""
        self._device.launch(kernel, grid, self._updated, **{**self.arrays, **more})

    def partial(self, name: str, items: int, grid: Grid) -> DeviceArray:
        """Room for one double per block and item."""
        return self._device.scratch(f"partial {name}", (items, grid[0]), np.float64)

    def finish(
        self, partial: DeviceArray, out: str, *, scale: str | None = None, added: bool = False
    ) -> None:
        """Add the partial sums of every item into the array named `out`."""
        kernel = "finish_added_sum" if added else "finish_sum"
        items, blocks = partial.shape
        self._device.launch(
            kernel, (items, 1), partial=partial, out=self.arrays[out], blocks=blocks,
            scale=None if scale is None else self.arrays[scale],
        )  # fmt: skip

    def finish_norms(
        self, squared: DeviceArray, largest: DeviceArray, into: str, peak: str
    ) -> None:
        """Add squares and take the largest magnitude of every item."""
        items, blocks = squared.shape
        self._device.launch(
            "finish_norms", (items, 1), squared_partial=squared, largest_partial=largest,
            squared=self.arrays[into], largest=self.arrays[peak], blocks=blocks,
        )  # fmt: skip
