"""The one driver of all searches: iterations, deadline, trace, best so far, stopping by item."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from unblemish.runtime.inspection import Status
from unblemish.runtime.solvers.protocol import (
    Bool,
    Double,
    Evaluation,
    Index,
    Problem,
    S,
    Solver,
    Variables,
)

Clock = Callable[[], float]
INTERIM = 30.0  # stages before the last need not be finished as finely


def share_of(deadline: float | None, parts: int, clock: Clock) -> float | None:
    """Deadline of the first of `parts` pieces of work that share the time until `deadline`."""
    if deadline is None:
        return None
    now = clock()
    return now + (deadline - now) / parts


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Args:
        max_steps: evaluations per item.
        tolerance: an item's stage ends when its best value fell by no more than this share of
            itself over the last `patience` steps taken (30 times this share before the last stage);
            0 switches the test off.
        patience: length of that window, in steps.
        floor: values below it count as so large in that test: what lies at zero is never flat.
        deadline: time on the clock (seconds) at which the loop must have returned, or None.
        race: after so many steps only the best start of each group goes on; 0 lets all finish.
        decrease: an item's stage also ends when none of the last `patience` steps changed its value
            by as much as this; 0 switches the test off.
        interim: a stage before the last also ends after so many steps; 0: only when it is flat.
    """

    max_steps: int
    tolerance: float = 0.0
    patience: int = 5
    deadline: float | None = None
    race: int = 0
    floor: float = 0.0
    decrease: float = 0.0
    interim: int = 0


@dataclass(frozen=True)
class Outcome:
    """Where each item ended, in the order of the items.

    Args:
        best: variables of the lowest value seen in the last stage reached.
        value: that value, (N,); inf where no evaluation was finite.
        stage: the last stage reached, (N,).
        status: one per item; `steps`: evaluations per item.
        trace: values in the order of evaluation, one array per item.
        seconds: time spent in the loop.
    """

    best: Variables
    value: Double
    stage: Index
    status: tuple[Status, ...]
    steps: Index
    trace: tuple[Double, ...]
    seconds: float


def run(
    problem: Problem,
    solver: Solver[S],
    start: Variables,
    limits: Limits,
    *,
    groups: Index | None = None,
    clock: Clock = time.perf_counter,
) -> Outcome:
    """Minimise `problem` from `start`, every item stopping by itself.

    Finished items leave the batch, so that the others pay nothing for them. An item whose value or
    gradient is not finite, and whose solver finds no way round, ends as NON_FINITE with the best
    it had.

    Args:
        start: groups of variables, (N, ...) each; row i is item i of the problem.
        groups: (N,) which items are starts of the same image; only `limits.race` uses it.
        clock: seconds, monotonic.
    """
    began = clock()
    driver = _Driver(problem, solver, start, limits, groups, clock)
    while driver.active.size:
        driver.advance()
    return driver.outcome(clock() - began)


@dataclass
class _Driver(Generic[S]):
    problem: Problem
    solver: Solver[S]
    start: Variables
    limits: Limits
    groups: Index | None
    clock: Clock
    step_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        count = len(self.start[0])
        self.active: Index = np.arange(count)
        self.best = tuple(np.array(group, np.float32) for group in self.start)
        self.value = np.full(count, np.inf)
        self.opening = np.full(count, np.inf)  # best of the first stage: what starts race by
        self.stage = np.zeros(count, np.intp)
        self.steps = np.zeros(count, np.intp)
        self.status = [Status.MAX_STEPS] * count
        self.trace: list[list[float]] = [[] for _ in range(count)]
        self.window: list[list[float]] = [[] for _ in range(count)]  # best of this stage by step
        self.state = self.solver.init(self.start)

    def advance(self) -> None:
        """One evaluation of every active item, unless time is up."""
        now = self.clock()
        deadline = self.limits.deadline
        if deadline is not None and now + self.step_seconds >= deadline:
            self._finish(np.ones(self.active.size, np.bool_), Status.DEADLINE)
            return
        query = self.state.query
        evaluation = self.problem.evaluate(query, self.active, self.stage[self.active])
        value, gradient = _repaired(evaluation)
        self._record(query, value)
        self.state = self.solver.step(self.state, value, gradient)
        self.step_seconds = max(self.clock() - now, 0.9 * self.step_seconds)
        self._settle(value)
        self._race()

    def _record(self, query: Variables, value: Double) -> None:
        self.steps[self.active] += 1
        for row, item in enumerate(self.active):
            self.trace[item].append(float(value[row]))
            if self.stage[item] == 0:
                self.opening[item] = min(self.opening[item], value[row])
            if value[row] < self.value[item]:
                self.value[item] = value[row]
                for kept, group in zip(self.best, query, strict=True):
                    kept[item] = group[row]

    def _settle(self, value: Double) -> None:
        """Move items to their next stage, or out of the batch."""
        stuck = self.solver.done(self.state)
        for item in self.active[self.solver.moved(self.state)]:
            self.window[item].append(float(self.value[item]))
        spent = self.steps[self.active] >= self.limits.max_steps
        flat = np.array([self._flat(item) for item in self.active], np.bool_)
        last = self.stage[self.active] >= self.problem.stages - 1
        failed = stuck & ~np.isfinite(value)
        onward = (stuck | flat | self._long_enough()) & ~last & ~spent & ~failed
        self._next_stage(onward)
        ended = np.where(failed, 3, np.where((stuck | flat) & last, 2, np.where(spent, 1, 0)))
        for code, status in (
            (3, Status.NON_FINITE),
            (2, Status.CONVERGED),
            (1, Status.MAX_STEPS),
        ):
            for item in self.active[ended == code]:
                self.status[item] = status
        self._keep(ended == 0)

    def _long_enough(self) -> Bool:
        """Active items whose stage has had its steps, where stages before the last are limited."""
        interim = self.limits.interim
        return np.array([0 < interim <= len(self.window[item]) for item in self.active], np.bool_)

    def _flat(self, item: int) -> bool:
        window, patience = self.window[item], self.limits.patience
        if len(window) <= patience or not np.isfinite(window[-1]):
            return False
        if self.limits.decrease > 0:
            changes = np.abs(np.diff(self.trace[item][-1 - patience :]))
            if bool((changes < self.limits.decrease).all()):
                return True
        if self.limits.tolerance <= 0:
            return False
        if self.groups is not None and self.steps[item] < self.limits.race:
            return False  # starts are compared within the first stage
        size = max(abs(window[-1]), self.limits.floor)
        if self.stage[item] < self.problem.stages - 1:
            size *= INTERIM
        return window[-1 - patience] - window[-1] <= self.limits.tolerance * size

    def _next_stage(self, rows: Bool) -> None:
        if not rows.any():
            return
        for item in self.active[rows]:
            self.stage[item] += 1
            self.value[item] = np.inf
            self.window[item] = []
        self.state = self.solver.restart(self.state, rows)

    def _race(self) -> None:
        """Let only the best start of each group go on."""
        if self.groups is None or not self.limits.race or not self.active.size:
            return
        if int(self.steps[self.active].max()) != self.limits.race:
            return
        keep = np.ones(self.active.size, np.bool_)
        for group in np.unique(self.groups[self.active]):
            rows = np.flatnonzero(self.groups[self.active] == group)
            # Not by `value`: it is inf where a start went on to its next stage just now.
            values = self.opening[self.active[rows]]
            keep[rows] = np.arange(rows.size) == int(np.argmin(values))
        lost = self.active[~keep]
        self.stage[lost], self.value[lost] = 0, self.opening[lost]
        self._keep(keep)

    def _finish(self, rows: Bool, status: Status) -> None:
        for item in self.active[rows]:
            self.status[item] = status
        self._keep(~rows)

    def _keep(self, rows: Bool) -> None:
        if rows.all():
            return
        index = np.flatnonzero(rows)
        self.active = self.active[index]
        self.state = self.solver.take(self.state, index)

    def outcome(self, seconds: float) -> Outcome:
        return Outcome(
            best=self.best,
            value=self.value,
            stage=self.stage,
            status=tuple(self.status),
            steps=self.steps,
            trace=tuple(np.array(values) for values in self.trace),
            seconds=seconds,
        )


def _repaired(evaluation: Evaluation) -> tuple[Double, Variables]:
    """Value inf and gradient 0 in rows where anything is not finite."""
    value, gradient = evaluation.value, evaluation.gradient
    good = np.isfinite(value)
    for group in gradient:
        good &= np.isfinite(group.reshape(len(group), -1).sum(axis=1))
    if good.all():
        return value.copy(), gradient
    repaired = tuple(
        np.where(good.reshape(-1, *([1] * (group.ndim - 1))), group, np.float32(0))
        for group in gradient
    )
    return np.where(good, value, np.inf), repaired
