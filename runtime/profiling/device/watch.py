"""How searches on the device spend their time: whole iterations, and piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.cuda.driver import Driver
from unblemish.kernels.cuda.signatures import Signature
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.profiling.device.outside import LaunchDriver, Outside
from unblemish.runtime.profiling.device.timeline import Backlog, Piece, Timeline
from unblemish.runtime.solvers.loop import Clock

_ITERATIONS = 10  # of a search: later ones may have nothing left to do
_LEAST = 3  # one to begin with, one to be captured, one to be timed


@dataclass
class StepSamples:
    """What was measured of one step, in milliseconds.

    Args:
        captured, uncaptured: of an iteration on the device, replayed as a graph, and put on the
            stream piece by piece; a number for each search.
        launched, put: the host's time for the same.
        pieces: of an iteration; a list for each.
        queued: whether every piece was on the stream before its turn.
    """

    replay: Replay
    captured: list[float] = field(default_factory=list)
    uncaptured: list[float] = field(default_factory=list)
    launched: list[float] = field(default_factory=list)
    put: list[float] = field(default_factory=list)
    pieces: list[list[tuple[Piece, float]]] = field(default_factory=list)
    queued: bool = True
    searches: int = 0

    @property
    def complete(self) -> bool:
        """Whether it was measured in every way that it can run."""
        captured = bool(self.captured) or not self.replay.step.capturable
        return bool(self.pieces) and bool(self.uncaptured) and captured


class DeviceWatch:
    """Runs searches on the device in ways that tell the time; see `runtime.device.run`.

    While it measures, every search is run in one of three ways, by turns: iterations piece by
    piece, the same without marks in between, and replayed as a graph. They are iterations of that
    search, the first few; it ends then, so that its result is not what it would be.

    Args:
        clock: of the host, seconds.

    Attributes:
        steps: of all searches so far. used: whether anything was put on the stream.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.steps: list[StepSamples] = []
        self.used = False
        self.clock = clock
        self._backlog: Backlog | None = None
        self._outside: Outside | None = None
        self._timeline: Timeline | None = None
        self._moved = 0
        self._searching = False

    @contextmanager
    def measuring(self, device: Device, backlog: Backlog) -> Iterator[Outside]:
        """Measure; what is put on the stream outside of searches is in what this gives."""
        driver, outside = device.driver, Outside(backlog)
        self._backlog, self._outside = backlog, outside
        device.driver = cast(Driver, LaunchDriver(driver, self._launch))
        try:
            yield outside
        finally:
            device.driver, self._backlog, self._outside = driver, None, None

    def moves(self, nbytes: int) -> None:
        """See `Watch`."""
        self.used = True
        self._moved = nbytes
        if self._timeline is not None:
            self._timeline.moved = nbytes

    def take(self, piece: Piece, put: Callable[[], None]) -> None:
        """See `PieceWatch`."""
        self.used = True
        if self._timeline is not None:
            self._timeline.take(piece, put)
        elif self._searching or self._outside is None:
            put()
        else:
            self._outside.take(piece, put)

    def _launch(self, kernel: Signature, put: Callable[[], None]) -> None:
        if self._searching:
            put()
        else:
            self.take(Piece.of(kernel, self._moved), put)

    def search(self, device: Device, replay: Replay, schedule: Schedule, clock: Clock) -> float:
        """See `SearchWatch`."""
        step, began = self._step(replay), clock()
        most = min(replay.step.progress.ends.most, _ITERATIONS)
        device.watch, self._searching = None, True
        try:
            if self._backlog is None or most < _LEAST:
                return run(device, replay, schedule, clock=clock)
            device.watch = self
            self._measure(device, step, most, self._backlog)
        finally:
            device.watch, self._searching = self, False
        return clock() - began

    def _measure(self, device: Device, step: StepSamples, most: int, backlog: Backlog) -> None:
        turn = step.searches % 3
        if turn == 0:
            self._by_pieces(backlog, step, most)
        elif turn == 1 or not step.replay.step.capturable:
            self._uncaptured(device, step, most)
        else:
            self._captured(device, step, most)
        step.searches += 1

    def _step(self, replay: Replay) -> StepSamples:
        for step in self.steps:
            if step.replay is replay:
                return step
        self.steps.append(StepSamples(replay))
        return self.steps[-1]

    def _by_pieces(self, backlog: Backlog, step: StepSamples, most: int) -> None:
        step.replay.step.enqueue()
        for _ in range(most - 1):
            timeline, holds = backlog.behind(lambda timeline: self._apart(step, timeline))
            if holds or not backlog.grow():
                step.queued &= holds
                pieces = zip(timeline.pieces, timeline.milliseconds(), strict=True)
                step.pieces.append(list(pieces))

    def _apart(self, step: StepSamples, timeline: Timeline) -> None:
        self._timeline = timeline
        try:
            step.replay.step.enqueue()
        finally:
            self._timeline = None

    def _uncaptured(self, device: Device, step: StepSamples, most: int) -> None:
        enqueue = step.replay.step.enqueue
        enqueue()
        there, here = self._timed(device, enqueue, most - 1)
        step.uncaptured.append(there)
        step.put.append(here)

    def _captured(self, device: Device, step: StepSamples, most: int) -> None:
        step.replay.repeat(2)  # the first time it runs, is captured and replayed
        there, here = self._timed(device, lambda: step.replay.repeat(1), most - 2)
        step.captured.append(there)
        step.launched.append(here)

    def _timed(self, device: Device, put: Callable[[], None], count: int) -> tuple[float, float]:
        """Milliseconds of device and host for each of `count`, behind one that is on its way."""
        driver = device.driver
        before, began = driver.record(timing=True), self.clock()
        for _ in range(count):
            put()
        here = self.clock() - began
        after = driver.record(timing=True)
        driver.synchronise()
        return after.since(before) / count, 1e3 * here / count
