"""The driver of searches on the device: iterations, deadline, flags read without waiting."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.cuda.device import Device, Watch
from unblemish.kernels.cuda.driver import Event
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.solvers.loop import Clock


@dataclass(frozen=True)
class Schedule:
    """How often the host looks.

    Args:
        every: iterations between two looks at the flags.
        deadline: time on the clock (seconds) at which the loop must have returned, or None.
        most: iterations; None for as many as the step may take.
    """

    every: int = 10
    deadline: float | None = None
    most: int | None = None


@runtime_checkable
class SearchWatch(Watch, Protocol):
    """A profile that repeats the step in its own ways, which says how long they took."""

    def search(self, device: Device, replay: Replay, schedule: Schedule, clock: Clock) -> float:
        """Do as `run`, with as many iterations at most."""


def run(
    device: Device, replay: Replay, schedule: Schedule, *, clock: Clock = time.perf_counter
) -> float:
    """Repeat a step until all items have ended, the last step is done or time is up.

    While one piece of `every` iterations runs, the next is on the stream already: the flags of a
    piece are looked at when the piece behind it has been put there. So up to two pieces run in
    vain, and change nothing, since ended items stay as they are.

    Returns: seconds spent. The device is idle when it returns.
    """
    if isinstance(device.watch, SearchWatch):
        return device.watch.search(device, replay, schedule, clock)
    began = clock()
    _Run(device, replay, schedule, clock).all()
    return clock() - began


@dataclass
class _Piece:
    event: Event
    flags: NDArray[np.int32]
    count: int


@dataclass
class _Run:
    device: Device
    replay: Replay
    schedule: Schedule
    clock: Clock
    seconds: float = field(default=0.0, init=False)  # of one iteration
    waiting: deque[_Piece] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        batch = self.replay.step.progress.batch
        self.free = deque(self.device.pinned((batch,), np.int32) for _ in range(3))
        self.seen = self.clock()

    def all(self) -> None:
        most = self.replay.step.progress.ends.most
        if self.schedule.most is not None:
            most = min(most, self.schedule.most)
        if self._out_of_time(1):
            return
        self._put(1)
        done, over = 1, self._take()  # the first tells how long one takes
        while done < most and not over:
            count = self._affordable(min(self.schedule.every, most - done))
            if count == 0:
                break
            self._put(count)
            done += count
            if len(self.waiting) > 1:
                over = self._take()
        self.device.driver.synchronise()

    def _put(self, count: int) -> None:
        """Put iterations on the stream, and behind them the way of the flags to the host."""
        driver = self.device.driver
        self.replay.repeat(count)
        flags = self.free.popleft()
        driver.download(flags, self.replay.step.progress.ended.pointer)
        self.waiting.append(_Piece(driver.record(), flags, count))

    def _take(self) -> bool:
        """Wait for the oldest piece; whether every item had ended by its end."""
        piece = self.waiting.popleft()
        piece.event.wait()
        now = self.clock()
        self.seconds = max((now - self.seen) / piece.count, 0.9 * self.seconds)
        self.seen = now
        over = bool((piece.flags != 0).all())
        self.free.append(piece.flags)
        return over

    def _affordable(self, count: int) -> int:
        """How many of these iterations will end before the deadline, after those on the stream."""
        deadline = self.schedule.deadline
        if deadline is None:
            return count
        before = sum(piece.count for piece in self.waiting)
        left = deadline - max(self.seen, self.clock() - before * self.seconds)
        if self.seconds <= 0:
            return count if left > 0 else 0
        return max(min(count, int(left / self.seconds) - before), 0)

    def _out_of_time(self, count: int) -> bool:
        return self._affordable(count) == 0
