"""L-BFGS on functions whose minimum is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.runtime.solvers.lbfgs import Lbfgs, LbfgsState

Function = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


def rosenbrock(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = z[:, 0], z[:, 1]
    value = (1 - x) ** 2 + 100 * (y - x * x) ** 2
    gradient = np.stack([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)], axis=1)
    return value, gradient


def bowl(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weight = np.array([1.0, 10.0, 100.0])
    return (weight * z**2).sum(axis=1), 2 * weight * z


def iterate(function: Function, start: NDArray[np.float32], steps: int) -> LbfgsState:
    solver = Lbfgs()
    state = solver.init((start,))
    for _ in range(steps):
        value, gradient = function(state.query[0].astype(np.float64))
        state = solver.step(state, value, (gradient.astype(np.float32),))
    return state


def test_lbfgs_finds_the_minimum_of_a_bowl() -> None:
    start = np.array([[1.0, -2.0, 0.5], [3.0, 1.0, 1.0]], np.float32)
    state = iterate(bowl, start, 40)
    np.testing.assert_allclose(state.u, 0, atol=1e-4)


def test_lbfgs_finds_the_minimum_of_rosenbrock() -> None:
    state = iterate(rosenbrock, np.array([[-1.2, 1.0]], np.float32), 80)
    np.testing.assert_allclose(state.u, [[1, 1]], atol=1e-2)  # float32 gradients in a flat valley


def test_lbfgs_accepts_only_what_lowers_the_value() -> None:
    solver = Lbfgs()
    state = solver.init((np.array([[-1.2, 1.0]], np.float32),))
    last = np.inf
    for _ in range(50):
        value, gradient = rosenbrock(state.query[0].astype(np.float64))
        state = solver.step(state, value, (gradient.astype(np.float32),))
        assert state.value[0] <= last
        last = state.value[0]


def test_lbfgs_rows_do_not_influence_each_other() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((5, 2)).astype(np.float32)
    together = iterate(rosenbrock, start, 25)
    for row in range(5):
        alone = iterate(rosenbrock, start[row : row + 1], 25)
        np.testing.assert_array_equal(alone.u[0], together.u[row])


def test_lbfgs_take_keeps_rows_as_they_are() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 2)).astype(np.float32)
    state = iterate(rosenbrock, start, 10)
    kept = Lbfgs().take(state, np.array([2, 0]))
    np.testing.assert_array_equal(kept.query[0], state.query[0][[2, 0]])
    np.testing.assert_array_equal(kept.s, state.s[[2, 0]])


def test_lbfgs_backs_off_from_values_that_are_not_finite() -> None:
    def walled(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        value, gradient = bowl(z)
        outside = np.abs(z[:, 0] - 0.9) > 0.4  # finite only near the start
        return np.where(outside, np.inf, value), np.where(outside[:, None], 0, gradient)

    state = iterate(walled, np.array([[1.0, 0.0, 0.0]], np.float32), 40)
    assert 0.5 <= state.u[0, 0] < 0.65
    assert np.isfinite(state.value[0])


def test_lbfgs_is_done_when_the_first_value_is_not_finite() -> None:
    solver = Lbfgs()
    state = solver.init((np.zeros((2, 2), np.float32),))
    zero = np.zeros((2, 2), np.float32)
    state = solver.step(state, np.array([np.inf, 1.0]), (zero,))
    assert solver.done(state).tolist() == [True, False]


def test_lbfgs_restart_evaluates_the_best_point_anew_and_keeps_its_memory() -> None:
    solver = Lbfgs()
    state = iterate(rosenbrock, np.array([[-1.2, 1.0], [0.0, 0.5]], np.float32), 12)
    rows = np.array([True, False])
    other = state.query[0][1].copy()
    state = solver.restart(state, rows)
    np.testing.assert_array_equal(state.query[0][0], state.u[0].astype(np.float32))
    np.testing.assert_array_equal(state.query[0][1], other)
    assert (state.rho[0] > 0).any()
    higher = np.array([1e6, 0.0])  # accepted although higher: it is another objective
    state = solver.step(state, higher, (np.ones((2, 2), np.float32),))
    assert state.value[0] == 1e6


@pytest.mark.parametrize("size", [1, 19, 512])
def test_lbfgs_first_step_is_bounded_and_goes_half_way_to_zero(size: int) -> None:
    solver = Lbfgs(first=0.5)
    state = solver.init((np.zeros((2, size), np.float32),))
    gradient = np.full((2, size), 2.0, np.float32)
    value = np.array([1e9, 0.1])  # linear with slope |g| = 2 sqrt(n), the second is zero at 0.05
    state = solver.step(state, value, (gradient,))
    far, near = np.linalg.norm(state.query[0], axis=1)
    assert far == pytest.approx(0.5 * np.sqrt(size), rel=1e-5)
    assert near == pytest.approx(0.5 * 0.1 / (2 * np.sqrt(size)), rel=1e-5)


def test_lbfgs_with_the_right_scale_solves_a_separable_bowl_at_once() -> None:
    weight = np.array([1.0, 10.0, 1000.0])
    solver = Lbfgs(scale=1 / np.sqrt(2 * weight))
    state = solver.init((np.array([[0.3, -0.2, 0.1]], np.float32),))
    for _ in range(2):
        z = state.query[0].astype(np.float64)
        gradient = (2 * weight * z).astype(np.float32)
        state = solver.step(state, (weight * z**2).sum(axis=1), (gradient,))
    np.testing.assert_allclose(state.u, 0, atol=1e-5)
