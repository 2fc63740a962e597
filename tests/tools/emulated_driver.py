"""A CUDA driver for tests: kernels run on the host, and its rules are enforced.

What is put on the stream runs when somebody waits for it, not before: a missing wait, a staging
array reused too early or memory given back too soon show. Device memory is host memory of its own,
filled with NaN, and every pointer of a launch must lie in a live piece of it. While a graph is
captured, allocating, waiting and copying from or to pageable memory are refused, as by CUDA.
Everything takes as long as the clock says, see `EmulatedClock`.
"""

from __future__ import annotations

import bisect
import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cuda_emulation import launch_packed
from emulated_clock import EmulatedClock
from numpy.typing import NDArray

from unblemish.errors import BackendError
from unblemish.kernels.cuda.signatures import Signature

Work = Callable[[], None]


class EmulatedMemory:
    """A piece of device memory; given back when it dies."""

    def __init__(self, driver: EmulatedDriver, nbytes: int) -> None:
        room = np.full(nbytes + 256, 0xFF, np.uint8)
        self.pointer = -(-room.ctypes.data // 256) * 256  # as cuMemAlloc aligns
        self._room, self._driver = room, driver
        driver.live[self.pointer] = nbytes

    def __del__(self) -> None:
        self._driver.live.pop(self.pointer, None)


class EmulatedEvent:
    """Reached when all that was on the stream before it has run."""

    def __init__(self, driver: EmulatedDriver, timing: bool) -> None:
        self._driver, self._timing = driver, timing
        self._passed = False
        driver.enqueue(self._pass, "event")

    def _pass(self) -> None:
        self._passed = True
        self._at = self._driver.clock.device

    def reached(self) -> bool:
        return self._passed

    def wait(self) -> None:
        self._driver.run_until(lambda: self._passed)
        self._driver.clock.waited(self._at)

    def since(self, before: EmulatedEvent) -> float:
        assert self._timing, "recorded without timing"
        assert before._timing, "recorded without timing"
        return self._at - before._at


class EmulatedGraph:
    """What was captured, with the arguments it was captured with."""

    def __init__(self, driver: EmulatedDriver, work: Sequence[Work]) -> None:
        self._driver, self.work = driver, tuple(work)
        self.launches = 0

    def launch(self) -> None:
        assert not self._driver.capturing
        self.launches += 1
        driver = self._driver
        put = driver.clock.putting()
        driver.pending.append(lambda: driver.clock.spend(0.0, put))
        driver.pending.extend(self.work)


class EmulatedDriver:
    """See `Driver`. `launched` names every kernel put on the stream, captured ones once."""

    name = "emulated"
    stream = 4096

    def __init__(
        self,
        libraries: Sequence[ctypes.CDLL],
        *,
        multiprocessors: int = 1,
        cache: int = 1 << 16,
        lazy: bool = True,
        clock: EmulatedClock | None = None,
    ) -> None:
        self.multiprocessors, self.cache = multiprocessors, cache
        self.clock = clock or EmulatedClock()
        self.device = (1, 0)  # kDLCPU: what NumPy and torch read
        self.capturing = False
        self.live: dict[int, int] = {}
        self.pinned_live: dict[int, NDArray[Any]] = {}
        self.pending: list[Work] = []
        self.captured: list[Work] = []
        self.launched: list[str] = []
        self.followed: list[int] = []
        self.led: list[int] = []
        self.waits = 0
        self.allocations = 0
        self._lazy = lazy
        self._libraries = libraries

    def allocate(self, nbytes: int) -> EmulatedMemory:
        self._not_capturing("allocate")
        self.allocations += 1
        return EmulatedMemory(self, nbytes)

    def pinned(self, nbytes: int) -> NDArray[Any]:
        self._not_capturing("allocate pinned memory")
        array = np.zeros(nbytes, np.uint8)
        self.pinned_live[array.ctypes.data] = array
        return array

    def launch(self, kernel: Signature, grid: tuple[int, int], values: list[Any]) -> None:
        assert len(kernel.format) == len(values)
        assert 1 <= grid[0] < 1 << 31, grid
        assert 1 <= grid[1] < 1 << 16, grid
        packed = struct.pack(kernel.format, *values)
        pairs = zip(kernel.format, values, strict=True)
        pointers = [value for letter, value in pairs if letter == "P" and value]
        library = next(lib for lib in self._libraries if hasattr(lib, f"launch_{kernel.name}"))

        def run() -> None:
            for pointer in pointers:
                self._inside(pointer, 1)
            launch_packed(library, kernel.name, grid, packed)

        self.launched.append(kernel.name)
        self.enqueue(run, kernel.name)

    def upload(self, pointer: int, host: NDArray[Any]) -> None:
        assert host.flags.c_contiguous
        source = host
        if not self._is_pinned(host):
            self._not_capturing("copy from pageable memory")
            source = host.copy()  # CUDA takes it before it returns
        self.enqueue(
            lambda: self.bytes_at(pointer, source.nbytes).__setitem__(..., _raw(source)),
            "upload", host.nbytes,
        )  # fmt: skip

    def download(self, host: NDArray[Any], pointer: int) -> None:
        assert host.flags.c_contiguous
        if not self._is_pinned(host):
            self._not_capturing("copy to pageable memory")
        self.enqueue(
            lambda: _raw(host).__setitem__(..., self.bytes_at(pointer, host.nbytes)),
            "download", host.nbytes,
        )  # fmt: skip

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.enqueue(
            lambda: self.bytes_at(to, nbytes).__setitem__(..., self.bytes_at(source, nbytes)),
            "copy", nbytes,
        )  # fmt: skip

    def fill(self, pointer: int, word: int, count: int) -> None:
        assert pointer % 4 == 0
        self.enqueue(
            lambda: self.bytes_at(pointer, 4 * count).view(np.uint32).fill(word), "fill", 4 * count
        )

    def follow(self, stream: int) -> None:
        self._not_capturing("wait for another stream")
        self.followed.append(stream)

    def lead(self, stream: int) -> None:
        self._not_capturing("let another stream wait")
        self.led.append(stream)
        self.run_until(lambda: not self.pending)  # the host is the other stream

    def record(self, *, timing: bool = False) -> EmulatedEvent:
        self._not_capturing("record an event to wait for")
        return EmulatedEvent(self, timing)

    def synchronise(self) -> None:
        self._not_capturing("wait")
        self.waits += 1
        self.run_until(lambda: not self.pending)
        self.clock.waited(self.clock.device)

    def begin_capture(self) -> None:
        assert not self.capturing
        self.capturing, self.captured = True, []

    def end_capture(self) -> EmulatedGraph:
        assert self.capturing
        self.capturing = False
        return EmulatedGraph(self, self.captured)

    def abandon_capture(self) -> None:
        self.capturing, self.captured = False, []

    def enqueue(self, work: Work, name: str = "engine", nbytes: int = 0) -> None:
        """Put anything on the stream: what an engine of a test does."""
        clock, capturing = self.clock, self.capturing
        cost = clock.cost(name, nbytes) + (clock.node if capturing else 0.0)
        put = 0.0 if capturing else clock.putting()

        def run() -> None:
            clock.spend(cost, put)
            work()

        if capturing:
            self.captured.append(run)
            return
        self.pending.append(run)
        if not self._lazy:
            self.run_until(lambda: not self.pending)

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.pending.pop(0)()

    def bytes_at(self, pointer: int, nbytes: int) -> NDArray[np.uint8]:
        """Device memory as the stream sees it now."""
        self._inside(pointer, nbytes)
        kind = ctypes.c_uint8 * nbytes
        return np.frombuffer(kind.from_address(pointer), np.uint8)

    def _inside(self, pointer: int, nbytes: int) -> None:
        starts = sorted(self.live)
        at = bisect.bisect_right(starts, pointer) - 1
        assert at >= 0, f"{pointer:#x} is no device memory"
        end = starts[at] + self.live[starts[at]]
        assert pointer + nbytes <= end, f"{pointer:#x} + {nbytes} is beyond device memory"

    def _is_pinned(self, host: NDArray[Any]) -> bool:
        address = host.ctypes.data
        return any(0 <= address - start < max(a.nbytes, 1) for start, a in self.pinned_live.items())

    def _not_capturing(self, what: str) -> None:
        if self.capturing:
            raise BackendError(f"CUDA would refuse to {what} while a graph is captured.")


def _raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
