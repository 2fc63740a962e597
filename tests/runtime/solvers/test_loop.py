"""The driver: stopping by item, deadlines on a false clock, stages, races, failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.inspection import Status
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.loop import Limits, run
from unblemish.runtime.solvers.protocol import Evaluation, Index, Variables


@dataclass
class Quadratics:
    """Item i in stage s: curvature[i] * |z - centre[i]|^2 + 10 * (stages - 1 - s)."""

    centre: NDArray[np.float32]
    curvature: NDArray[np.float64]
    stages: int = 1
    broken: Callable[[int, int], bool] = lambda item, call: False
    tick: Callable[[], None] = lambda: None
    batches: list[list[int]] = field(default_factory=list)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        self.tick()
        self.batches.append(items.tolist())
        r = query[0] - self.centre[items]
        weight = self.curvature[items]
        value = weight * (r.astype(np.float64) ** 2).sum(axis=1) + 10.0 * (self.stages - 1 - stage)
        gradient = (2 * weight[:, None] * r).astype(np.float32)
        for row, item in enumerate(items):
            if self.broken(int(item), len(self.batches)):
                value[row] = np.nan
        return Evaluation(value, (gradient,))


def quadratics(count: int = 3, **options: object) -> Quadratics:
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((count, 4)).astype(np.float32)
    return Quadratics(centre, 10.0 ** np.arange(count), **options)  # type: ignore[arg-type]


def start(count: int = 3) -> Variables:
    return (np.zeros((count, 4), np.float32),)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds


def test_run_converges_and_reports() -> None:
    problem = quadratics()
    outcome = run(problem, Lbfgs(), start(), Limits(50, tolerance=1e-3, floor=1e-4))
    np.testing.assert_allclose(outcome.best[0], problem.centre, atol=1e-3)
    assert outcome.status == (Status.CONVERGED,) * 3
    assert all(len(t) == n for t, n in zip(outcome.trace, outcome.steps, strict=True))
    np.testing.assert_allclose(outcome.value, [t.min() for t in outcome.trace])


def test_run_lets_finished_items_leave_the_batch() -> None:
    problem = quadratics()
    problem.centre[1] = 0.0  # already there: its value cannot fall
    outcome = run(problem, Adam(NumpyKernels(), (0.05,)), start(), Limits(60, 1e-3, floor=1e-4))
    assert outcome.steps[1] < outcome.steps[0]
    sizes = [len(batch) for batch in problem.batches]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 not in problem.batches[outcome.steps[1]]


def test_run_stops_at_max_steps() -> None:
    outcome = run(quadratics(), Adam(NumpyKernels(), (1e-4,)), start(), Limits(7))
    assert outcome.steps.tolist() == [7, 7, 7]
    assert outcome.status == (Status.MAX_STEPS,) * 3


def test_run_keeps_the_deadline_and_counts_the_step_to_come() -> None:
    clock = Clock()
    problem = quadratics(tick=clock.tick)  # one second per evaluation
    limits = Limits(100, deadline=clock() + 4.5)
    outcome = run(problem, Adam(NumpyKernels(), (0.01,)), start(), limits, clock=clock)
    assert outcome.status == (Status.DEADLINE,) * 3
    assert outcome.steps.tolist() == [4, 4, 4]  # a fifth step would end at 5.0
    assert clock() <= limits.deadline if limits.deadline else False
    assert outcome.seconds == 4.0


def test_run_returns_the_start_when_there_is_no_time_at_all() -> None:
    clock = Clock()
    limits = Limits(100, deadline=clock())
    outcome = run(quadratics(), Lbfgs(), start(), limits, clock=clock)
    assert outcome.status == (Status.DEADLINE,) * 3
    np.testing.assert_array_equal(outcome.best[0], start()[0])
    assert np.isinf(outcome.value).all()


def test_run_returns_the_best_iterate_not_the_last() -> None:
    # A rate far too large: Adam jumps over the minimum and away from it.
    problem = quadratics(1)
    outcome = run(problem, Adam(NumpyKernels(), (5.0,)), start(1), Limits(6))
    assert outcome.trace[0][-1] > outcome.trace[0].min()
    assert outcome.value[0] == outcome.trace[0].min()


def test_run_isolates_items_that_are_never_finite() -> None:
    problem = quadratics(broken=lambda item, call: item == 1)
    outcome = run(problem, Lbfgs(), start(), Limits(50, tolerance=1e-3, floor=1e-4))
    assert outcome.status == (Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED)
    assert outcome.steps[1] == 1
    np.testing.assert_array_equal(outcome.best[0][1], 0)
    np.testing.assert_allclose(outcome.best[0][[0, 2]], problem.centre[[0, 2]], atol=1e-3)


def test_run_keeps_the_best_before_an_item_broke() -> None:
    problem = quadratics(1, broken=lambda item, call: call > 3)
    outcome = run(problem, Adam(NumpyKernels(), (0.1,)), start(1), Limits(20))
    assert outcome.status == (Status.NON_FINITE,)
    assert outcome.steps[0] == 4
    assert outcome.value[0] == outcome.trace[0][2]


def test_run_survives_a_single_failed_evaluation_with_lbfgs() -> None:
    problem = quadratics(1, broken=lambda item, call: call == 3)
    outcome = run(problem, Lbfgs(), start(1), Limits(50, tolerance=1e-4, floor=1e-4))
    assert outcome.status == (Status.CONVERGED,)
    np.testing.assert_allclose(outcome.best[0], problem.centre, atol=1e-3)


def test_run_goes_through_all_stages_item_by_item() -> None:
    problem = quadratics(stages=3)
    outcome = run(problem, Lbfgs(), start(), Limits(80, tolerance=1e-3, floor=1e-4))
    assert outcome.stage.tolist() == [2, 2, 2]
    assert outcome.status == (Status.CONVERGED,) * 3
    assert (outcome.value < 1e-3).all()  # the value of the last stage has no offset
    np.testing.assert_allclose(outcome.best[0], problem.centre, atol=1e-2)


def test_run_races_starts_and_lets_the_best_of_each_group_go_on() -> None:
    problem = quadratics(4)
    problem.curvature[:] = 1.0
    problem.centre[1] += 1
    problem.centre[2] += 1
    problem.centre[3] += 9
    begin = (np.array(problem.centre),)
    begin[0][[0, 3]] += 3.0  # items 1 and 2 start at their minimum
    limits = Limits(40, tolerance=1e-6, race=3)
    groups = np.array([0, 0, 1, 1])
    outcome = run(problem, Adam(NumpyKernels(), (0.1,)), begin, limits, groups=groups)
    assert outcome.steps.tolist()[0] == outcome.steps.tolist()[3] == 3
    assert min(outcome.steps[1], outcome.steps[2]) > 3


def test_run_is_the_same_for_a_batch_and_for_single_items() -> None:
    together = run(quadratics(), Lbfgs(), start(), Limits(50, tolerance=1e-3, floor=1e-4))
    for item in range(3):
        one = quadratics()
        alone = Quadratics(one.centre[[item]], one.curvature[[item]])
        outcome = run(alone, Lbfgs(), start(1), Limits(50, tolerance=1e-3, floor=1e-4))
        np.testing.assert_array_equal(outcome.best[0][0], together.best[0][item])
        assert outcome.steps[0] == together.steps[item]


def test_run_keeps_the_best_start_that_ends_its_stage_with_the_race() -> None:
    problem = quadratics(2, stages=2)
    problem.curvature[:] = 1.0
    begin = (np.array(problem.centre),)
    begin[0][1] += 3.0  # item 0 starts at its minimum, and is done with the stage at once
    limits = Limits(40, tolerance=1e-3, patience=2, race=3)
    outcome = run(problem, Adam(NumpyKernels(), (0.1,)), begin, limits, groups=np.zeros(2, np.intp))
    assert outcome.steps[0] > outcome.steps[1] == 3
    assert outcome.stage.tolist() == [1, 0]
    assert outcome.value[0] == 0.0
    assert outcome.value[1] == outcome.trace[1].min()


def test_items_stop_where_no_step_changes_the_value_by_much() -> None:
    problem = quadratics(2)
    limits = Limits(max_steps=500, patience=3, decrease=0.05)
    outcome = run(problem, Adam(NumpyKernels(), (0.05,)), start(2), limits)
    assert outcome.status == (Status.CONVERGED, Status.CONVERGED)
    for item in range(2):
        changes = np.abs(np.diff(outcome.trace[item]))
        assert (changes[-3:] < 0.05).all()
        # It did not stop before: no earlier window of three changes was as small.
        windows = np.lib.stride_tricks.sliding_window_view(changes[:-1], 3)
        assert (windows.max(axis=1) >= 0.05).all()


def test_stages_before_the_last_end_after_their_steps() -> None:
    problem = quadratics(2, stages=3)
    limits = Limits(max_steps=20, interim=4)
    outcome = run(problem, Adam(NumpyKernels(), (0.01,)), start(2), limits)
    assert outcome.stage.tolist() == [2, 2]
    trace = outcome.trace[0]
    assert (trace[:4] > 20).all()
    assert ((trace[4:8] > 10) & (trace[4:8] < trace[:4])).all()
    assert (trace[8:] < trace[4:8].min()).all()
    assert outcome.steps.tolist() == [20, 20]
