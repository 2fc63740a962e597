"""A GPU as the kernels see it: arrays, scratch memory, grids and launches on one stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unblemish.errors import BackendError, ShapeError
from unblemish.kernels.cuda.driver import THREADS, Driver, Memory
from unblemish.kernels.cuda.signatures import Signature, signatures
from unblemish.kernels.device_array import DeviceArray, from_foreign

Grid = tuple[int, int]

_MOST_ROWS = 65535  # of a grid
_BLOCKS_PER_MULTIPROCESSOR = 8  # 2048 threads, what the largest chips hold at once


class Watch(Protocol):
    """What a profile hears of the work on a device."""

    def moves(self, nbytes: int) -> None:
        """Note what the launch that follows reads and writes: every array once for each."""


class Device:
    """Arrays and launches. Not thread-safe: one object, one thread at a time.

    Scratch memory is never given back before the end: a captured graph may hold its address.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.watch: Watch | None = None
        self._kernels = signatures()
        self._scratch: dict[str, DeviceArray] = {}
        self._outgrown: list[DeviceArray | None] = []  # kept alive

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> DeviceArray:
        """Allocate an array; it lives as long as the object returned."""
        kind = np.dtype(dtype)
        nbytes = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
        return self._seen(self._allocate(nbytes), shape, kind)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> DeviceArray:
        """As `empty`, and cleared."""
        array = self.empty(shape, dtype)
        if array.nbytes % 4:
            self.upload(array, np.zeros(shape, array.dtype))
        else:
            self.driver.fill(array.pointer, 0, array.nbytes // 4)
        return array

    def to_device(self, host: NDArray[Any]) -> DeviceArray:
        """Copy a host array into an array of its own."""
        array = self.empty(host.shape, host.dtype)
        self.upload(array, host)
        return array

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        """Copy an array to the host, and wait for it."""
        host = np.empty(array.shape, array.dtype)
        self.driver.download(host, array.pointer)
        self.driver.synchronise()
        return host

    def upload(self, array: DeviceArray, host: NDArray[Any]) -> None:
        """Write a host array of the same shape and dtype. Raises: ShapeError for another."""
        if host.shape != array.shape or host.dtype != array.dtype:
            raise ShapeError(
                f"a device array of shape {array.shape} and {array.dtype} was given "
                f"{host.shape} and {host.dtype}."
            )
        if host.size:
            self.driver.upload(array.pointer, np.ascontiguousarray(host))

    def copy(self, to: DeviceArray, source: DeviceArray) -> None:
        """Copy one contiguous array over another of the same size."""
        self.driver.copy(to.pointer, source.pointer, to.nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Host memory for frames and results that the device reaches by itself."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return self.driver.pinned(max(count, 1))[:count].view(kind).reshape(shape)

    def view(self, value: Any) -> Any:
        """Another library's device array as a `DeviceArray`; anything else as it is."""
        if value is None or isinstance(value, np.ndarray):
            return value
        found = from_foreign(value, self.driver.stream, self.driver.follow)
        return value if found is None else found

    def scratch(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Memory of that name, allocated once and enlarged where it must be.

        Raises: BackendError where it would have to grow while a graph is captured.
        """
        kind = np.dtype(dtype)
        needed = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
        held = self._scratch.get(name)
        if held is None or held.nbytes < needed:
            size = needed if held is None else max(needed, 2 * held.nbytes)
            memory = self._allocate(size)
            self._outgrown.append(held)
            held = self._scratch[name] = self._seen(memory, (size,), np.dtype(np.uint8))
        return DeviceArray(
            held.pointer, shape, kind, owner=held.owner, device=self.driver.device,
            stream=self.driver.stream, follow=self.driver.lead,
        )  # fmt: skip

    def launch(
        self, kernel: str, grid: Grid, updated: Collection[str] = (), /, **given: Any
    ) -> None:
        """Launch a kernel; its arguments by name, arrays as `DeviceArray`, None a null pointer.

        Args:
            updated: names of the arrays that it reads as well as writes.
        Raises: BackendError where one is missing or of another dtype than the kernel takes.
        """
        signature = self._kernels[kernel]
        if self.watch is not None:
            self.watch.moves(_moved(signature, given, updated))
        for parameter in signature.parameters:
            array = given.get(parameter.name)
            if not isinstance(array, DeviceArray):
                continue
            if parameter.dtype is not None and array.dtype != parameter.dtype:
                raise BackendError(
                    f"CUDA kernel {kernel}: '{parameter.name}' must be {parameter.dtype}, "
                    f"found {array.dtype}."
                )
            given[parameter.name] = array.pointer
        self.driver.launch(signature, grid, signature.values(given))

    def rows(self, items: int, elements: int, width: int = 4) -> Grid:
        """Grid of items of `elements` each, `width` of which a thread takes at once."""
        at_once = min(max(items, 1), _MOST_ROWS)
        blocks = -(-max(elements, 1) // (THREADS * width))
        return min(blocks, -(-self.most_blocks // at_once)), at_once

    @property
    def most_blocks(self) -> int:
        """Blocks that fill the chip."""
        return _BLOCKS_PER_MULTIPROCESSOR * self.driver.multiprocessors

    def _allocate(self, nbytes: int) -> Memory:
        if self.driver.capturing:
            raise BackendError(
                "memory was asked for while a CUDA graph is captured. Run the step once before it "
                "is captured, with the same shapes."
            )
        return self.driver.allocate(nbytes)

    def _seen(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        return DeviceArray(
            memory.pointer, shape, dtype, owner=memory, device=self.driver.device,
            stream=self.driver.stream, follow=self.driver.lead,
        )  # fmt: skip


def _moved(kernel: Signature, given: Mapping[str, Any], updated: Collection[str]) -> int:
    """Bytes of the kernel's arrays, of those updated twice."""
    arrays = {p.name: given.get(p.name) for p in kernel.parameters}
    return sum(
        array.nbytes * (1 + (name in updated))
        for name, array in arrays.items()
        if isinstance(array, DeviceArray)
    )
