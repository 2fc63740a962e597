"""What the model sees of native windows, on the device; see `methods.decomposition.View`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.memory import Memory
from unblemish.runtime.methods.decomposition import View


@dataclass(frozen=True)
class Taps:
    """out[j] = sum over k of weights[j, k] in[start[j] + k], one table for every item.

    Args:
        start: (N, n) int32; all taps lie inside. weights: (N, n, taps) float32.
    """

    start: NDArray[np.int32]
    weights: NDArray[np.float32]


def taps_of(dense: NDArray[np.float32]) -> Taps:
    """Matrices (N, n, m), of whose rows only a stretch is not 0, as tables."""
    used = dense != 0
    seen = used.any(axis=2)
    first = np.where(seen, used.argmax(axis=2), 0)
    last = np.where(seen, dense.shape[2] - 1 - used[:, :, ::-1].argmax(axis=2), 0)
    count = int((last - first).max()) + 1
    start = np.minimum(first, dense.shape[2] - count)
    columns = start[:, :, None] + np.arange(count)
    weights = np.take_along_axis(dense, columns, axis=2)
    return Taps(start.astype(np.int32), np.ascontiguousarray(weights, np.float32))


@dataclass(frozen=True)
class ViewTables:
    """A `View` as the device takes it: both ways of both axes."""

    view: View
    down: Taps
    across: Taps
    up: Taps
    out: Taps

    @staticmethod
    def of(view: View) -> ViewTables:
        """The tables of a view."""
        turned = view.down.transpose(0, 2, 1), view.across.transpose(0, 2, 1)
        return ViewTables(view, *map(taps_of, (view.down, turned[1], turned[0], view.across)))

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is copied to the device."""
        found: dict[str, NDArray[Any]] = {"base": self.view.base, "images": self.view.images}
        for name in ("down", "across", "up", "out"):
            taps: Taps = getattr(self, name)
            found |= {f"{name} start": taps.start, f"{name} weights": taps.weights}
        return found

    @property
    def key(self) -> tuple[object, ...]:
        """What views have in common that can take each other's place on the device."""
        return self.view.gain, *(array.shape for array in self.arrays.values())


class DeviceView:
    """A `View` of N windows; the launches are of fixed addresses, and may be captured.

    Args:
        memory: where it is kept.
    """

    def __init__(self, device: Device, tables: ViewTables, memory: Memory) -> None:
        base, images = tables.view.base, tables.view.images
        self._device, self._sets, self._gain = device, len(base), tables.view.gain
        self._channels, self._window, self._crop = base.shape[1], base.shape[2:], images.shape[2:]
        self._held = {
            name: memory(f"view {name}", array.shape, array.dtype)
            for name, array in tables.arrays.items()
        }
        self.load(tables)

    def load(self, tables: ViewTables) -> None:
        """Go on with another view of the same `key`."""
        for name, array in tables.arrays.items():
            self._device.upload(self._held[name], np.ascontiguousarray(array))

    def project(self, n: DeviceArray, images: DeviceArray) -> None:
        """Put on the stream: windows n (B, C, H, W), in units, to the first B crops (_, C, h, w).

        B is N, or any number of versions of one window where N is 1.
        """
        (height, width), (h, w) = self._window, self._crop
        half, held = self._half(n), self._held
        rows = self._channels * height
        self._apply("across", n, half, (rows, width, w, 1), base=held["base"])
        self._apply(
            "down", half, images, (self._channels, height, h, w), gain=self._gain,
            plus=held["images"],
        )  # fmt: skip

    def pull_back(self, gradient: DeviceArray, out: DeviceArray) -> None:
        """Put on the stream: the gradient by the crops to that by the windows."""
        (height, width), (h, w) = self._window, self._crop
        half, rows = self._half(out), self._channels * height
        self._apply("up", gradient, half, (self._channels, h, height, w))
        self._apply("out", half, out, (rows, w, width, 1), gain=self._gain)

    def _half(self, windows: DeviceArray) -> DeviceArray:
        shape = (*windows.shape[:3], self._crop[1])
        return self._device.scratch("half projected", shape, np.float32)

    def _apply(
        self,
        axis: str,
        x: DeviceArray,
        out: DeviceArray,
        sizes: tuple[int, int, int, int],
        *,
        base: DeviceArray | None = None,
        gain: float = 1.0,
        plus: DeviceArray | None = None,
    ) -> None:
        outer, before, after, inner = sizes
        weights, batch = self._held[f"{axis} weights"], min(x.shape[0], out.shape[0])
        self._device.launch(
            "project_axis", self._device.rows(batch, outer * after * inner, 1), x=x, base=base,
            start=self._held[f"{axis} start"], weights=weights, taps=weights.shape[2], gain=gain,
            plus=plus, out=out, batch=batch, sets=self._sets, outer=outer, before=before,
            after=after, inner=inner,
        )  # fmt: skip
