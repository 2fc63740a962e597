"""What the kernels and the loops on the device need of CUDA: one context, one stream."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from unblemish.kernels.cuda.signatures import Signature

THREADS = 256  # of every block, see common.cuh


class Memory(Protocol):
    """Device memory; it is given back when the object dies."""

    pointer: int


class Event(Protocol):
    """A point on the stream."""

    def reached(self) -> bool:
        """Whether the device has got there; does not wait."""

    def wait(self) -> None:
        """Block this thread until the device has got there."""

    def since(self, before: Any) -> float:
        """Milliseconds on the device from another event; both with `timing`, and reached."""


class Graph(Protocol):
    """A captured piece of work of fixed addresses."""

    def launch(self) -> None:
        """Put it on the stream."""


class Driver(Protocol):
    """Everything is put on one stream and checked; nothing but `synchronise` and `wait` waits.

    Between `begin_capture` and `end_capture` what is put on the stream is recorded, not run: then
    memory may neither be allocated nor taken from pageable arrays, and nothing may wait.
    Implemented by `PycudaDriver`, and in tests by one that runs the kernels on the host.
    """

    name: str
    multiprocessors: int
    cache: int  # bytes of the last cache before the device's memory
    stream: int
    device: tuple[int, int]
    capturing: bool

    def allocate(self, nbytes: int) -> Memory:
        """Allocate device memory. Raises: BackendError where there is none."""

    def pinned(self, nbytes: int) -> NDArray[Any]:
        """Allocate host memory that the device reaches by itself, (nbytes,) uint8."""

    def launch(self, kernel: Signature, grid: tuple[int, int], values: list[Any]) -> None:
        """Put a kernel on the stream; values in the order of its signature."""

    def upload(self, pointer: int, host: NDArray[Any]) -> None:
        """Copy a C-contiguous host array to the device.

        A pageable one may be changed as soon as this returns, a pinned one when the copy is done.
        """

    def download(self, host: NDArray[Any], pointer: int) -> None:
        """Copy from the device to a C-contiguous host array, valid after `synchronise`."""

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy on the device."""

    def fill(self, pointer: int, word: int, count: int) -> None:
        """Write `count` equal 32-bit words."""

    def follow(self, stream: int) -> None:
        """Make our stream wait for what is on another by now."""

    def lead(self, stream: int) -> None:
        """Make another stream wait for what is on ours by now."""

    def record(self, *, timing: bool = False) -> Event:
        """Mark the present end of the stream; with `timing` the device notes when it gets there."""

    def synchronise(self) -> None:
        """Wait until the stream is empty. Raises: BackendError for errors of what was on it."""

    def begin_capture(self) -> None:
        """Record from here on."""

    def end_capture(self) -> Graph:
        """What was recorded. Raises: BackendError where the capture was broken."""

    def abandon_capture(self) -> None:
        """Leave a capture that failed; what was recorded is dropped."""
