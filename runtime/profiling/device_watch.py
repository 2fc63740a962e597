"""How searches on the device spend their time: whole iterations, and piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from unblemish.kernels.cuda.device import Device
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.profiling.device_timeline import Backlog, Piece, Timeline
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

    With a backlog every search is measured in one of three ways, by turns: iterations piece by
    piece, the same without marks in between, and replayed as a graph. They are iterations of that
    search, the first few; it ends then, so that its result is not what it would be.

    Args:
        clock: of the host, seconds.

    Attributes:
        backlog: None as long as searches run as ever.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.backlog: Backlog | None = None
        self.timeline: Timeline | None = None
        self.steps: list[StepSamples] = []
        self.clock = clock

    def moves(self, nbytes: int) -> None:
        """See `Watch`."""
        if self.timeline is not None:
            self.timeline.moved = nbytes

    def search(self, device: Device, replay: Replay, schedule: Schedule, clock: Clock) -> float:
        """See `SearchWatch`."""
        step = self._step(replay)
        most = min(replay.step.progress.ends.most, _ITERATIONS)
        if self.backlog is None or most < _LEAST:
            device.watch = None
            try:
                return run(device, replay, schedule, clock=clock)
            finally:
                device.watch = self
        began = clock()
        turn = step.searches % 3
        if turn == 0:
            self._by_pieces(self.backlog, step, most)
        elif turn == 1 or not replay.step.capturable:
            self._uncaptured(device, step, most)
        else:
            self._captured(device, step, most)
        step.searches += 1
        return clock() - began

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
        self.timeline = timeline
        try:
            step.replay.step.enqueue()
        finally:
            self.timeline = None

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
