"""Work on the device, piece by piece: a mark of the time behind whatever is put there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

from numpy.typing import NDArray

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.cuda.driver import Driver, Event
from unblemish.kernels.cuda.signatures import Signature
from unblemish.runtime.solvers.loop import Clock

Kind = Literal["engine", "kernel", "bookkeeping", "copy", "upload", "download"]

_BACKLOG = 64 << 20  # bytes of a copy
_MOST_COPIES = 256


@dataclass(frozen=True)
class Piece:
    """What was put on the stream at once.

    Args:
        nbytes: read and written, every array once for each; None where that says nothing.
        flops: of an engine's graph, where it is known.
    """

    name: str
    kind: Kind
    nbytes: int | None = None
    flops: int | None = None

    @staticmethod
    def of(kernel: Signature, nbytes: int) -> Piece:
        """A launch."""
        if kernel.source == "progress":  # its arrays are kept for all steps, and hardly touched
            return Piece("bookkeeping", "bookkeeping")
        return Piece(kernel.name, "kernel", nbytes)


class Timeline:
    """A `Driver` that marks the stream behind every piece.

    Between two marks lies one piece alone. What goes to the stream past this driver, as a library's
    own work may, counts with the piece after it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._within = False
        self.moved = 0  # by the next launch, see `Watch`
        self.pieces: list[Piece] = []
        self.marks: list[Event] = [driver.record(timing=True)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def launch(self, kernel: Signature, grid: tuple[int, int], values: list[Any]) -> None:
        """See `Driver`."""
        self._driver.launch(kernel, grid, values)
        self._mark(Piece.of(kernel, self.moved))

    def upload(self, pointer: int, host: NDArray[Any]) -> None:
        """See `Driver`."""
        self._driver.upload(pointer, host)
        self._mark(Piece("upload", "upload", host.nbytes))

    def download(self, host: NDArray[Any], pointer: int) -> None:
        """See `Driver`."""
        self._driver.download(host, pointer)
        self._mark(Piece("download", "download", host.nbytes))

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """See `Driver`."""
        self._driver.copy(to, source, nbytes)
        self._mark(Piece("copy", "copy", 2 * nbytes))

    def fill(self, pointer: int, word: int, count: int) -> None:
        """See `Driver`."""
        self._driver.fill(pointer, word, count)
        self._mark(Piece("fill", "copy", 4 * count))

    def take(self, piece: Piece, put: Callable[[], None]) -> None:
        """Count all that `put` puts on the stream as one piece."""
        self._within = True
        try:
            put()
        finally:
            self._within = False
        self._mark(piece)

    def milliseconds(self) -> list[float]:
        """Of every piece, with the mark behind it; the stream must be empty."""
        return [after.since(before) for before, after in pairwise(self.marks)]

    def _mark(self, piece: Piece) -> None:
        if not self._within:
            self.pieces.append(piece)
            self.marks.append(self._driver.record(timing=True))


class Backlog:
    """Copies that keep the device busy while the host puts pieces on the stream.

    Without them the device reaches a mark as soon as it is put there, and the time from it to the
    next would be that of the host.

    Args:
        clock: of the host, seconds.
    """

    def __init__(
        self, device: Device, clock: Clock = time.perf_counter, nbytes: int = _BACKLOG
    ) -> None:
        self.device, self._clock = device, clock
        self._arrays = device.zeros((nbytes // 4,)), device.zeros((nbytes // 4,))
        self._copies = 1

    def behind(self, put: Callable[[Timeline], None]) -> tuple[Timeline, bool]:
        """Put pieces behind the copies, and wait for them.

        Returns: the timeline, and whether it holds: the copies ran until all pieces were there.
        """
        driver = self.device.driver
        began, start = self._clock(), driver.record(timing=True)
        for _ in range(self._copies):
            self.device.copy(*self._arrays)
        timeline = Timeline(driver)
        self.device.driver = cast(Driver, timeline)
        try:
            put(timeline)
        finally:
            self.device.driver = driver
        host = self._clock() - began
        driver.synchronise()
        return timeline, timeline.marks[0].since(start) >= 1e3 * host

    def grow(self) -> bool:
        """Take twice as many copies from now on; False where they are many already."""
        if self._copies >= _MOST_COPIES:
            return False
        self._copies *= 2
        return True

    def timed(self, put: Callable[[Timeline], None]) -> Timeline:
        """As `behind`, again until it holds, or until more copies would be too many."""
        timeline, holds = self.behind(put)
        while not holds and self.grow():
            timeline, holds = self.behind(put)
        return timeline
