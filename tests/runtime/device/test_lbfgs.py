"""L-BFGS on the device, held to the solver of the host step by step, and to known minima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError
from unblemish.runtime.device.steps.lbfgs import DeviceLbfgs
from unblemish.runtime.solvers.lbfgs import Lbfgs

Function = Callable[[Any], tuple[Any, Any]]

SIZES = [1, 5, 130, 512]


def valley(z: Any) -> tuple[Any, Any]:
    """Rosenbrock's function over neighbours, and a parabola in the last variable."""
    a, b = z[:, :-1], z[:, 1:]
    apart = b - a * a
    value = (4 * apart**2 + (1 - a) ** 2).sum(axis=1) + (z[:, -1] - 1) ** 2
    gradient = np.zeros_like(z)
    gradient[:, :-1] = -16 * a * apart - 2 * (1 - a)
    gradient[:, 1:] += 8 * apart
    gradient[:, -1] += 2 * (z[:, -1] - 1)
    return value, gradient


def bowl(z: Any) -> tuple[Any, Any]:
    """A parabola whose axes differ by a factor of 1,000."""
    weight = np.logspace(0, 3, z.shape[1])
    return (weight * z**2).sum(axis=1), 2 * weight * z


def waves(z: Any) -> tuple[Any, Any]:
    """Many minima: curvature that is not remembered, and steps that are refused."""
    value = (np.square(z) / 8 + 1 - np.cos(3 * z)).sum(axis=1)
    return value, z / 4 + 3 * np.sin(3 * z)


def walled(z: Any) -> tuple[Any, Any]:
    """The bowl, finite only near the start; what lies at 30 is nowhere finite."""
    value, gradient = bowl(z)
    value[(np.abs(z) > 1.3).any(axis=1)] = np.nan
    gradient[(z < -1.2).any(axis=1), -1] = np.inf
    return value, gradient


class Steps:
    """The solver on the device, told values by the host."""

    def __init__(self, device: Any, start: Any, solver: Lbfgs) -> None:
        self.device = device
        self.query, self.gradient = device.empty(start.shape), device.empty(start.shape)
        self.objective = device.empty(start.shape[:1], np.float64)
        self.ended = device.zeros(start.shape[:1], np.int32)
        self.solver = DeviceLbfgs(device, solver, self.query, self.gradient)
        self.solver.start(start)

    def take(self, function: Function) -> Any:
        """One step; the query that was asked for."""
        query = self.device.to_host(self.query)
        value, gradient = function(query.astype(np.float64))
        self.device.upload(self.objective, value)
        self.device.upload(self.gradient, gradient.astype(np.float32))
        self.solver.step(self.objective, self.ended)
        self.solver.aim(self.ended)
        return query


def on_host(function: Function, start: Any, solver: Lbfgs, steps: int) -> list[Any]:
    """(query, moved, stuck) of every step."""
    state, found = solver.init((start,)), []
    for _ in range(steps):
        query = state.query[0].copy()
        value, gradient = function(query.astype(np.float64))
        gradient = gradient.astype(np.float32)
        good = np.isfinite(value) & np.isfinite(gradient.sum(axis=1))
        gradient[~good] = 0
        state = solver.step(state, np.where(good, value, np.inf), (gradient,))
        found.append((query, solver.moved(state).copy(), solver.done(state).copy()))
    return found


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("function", [valley, bowl, waves, walled])
@pytest.mark.parametrize("size", SIZES)
def test_steps_are_those_of_the_host(
    any_kernels: Any, function: Function, size: int, scaled: bool
) -> None:
    rng = np.random.default_rng(size)
    start = rng.uniform(-1.0, 1.0, (3, size)).astype(np.float32)
    if function is walled:
        start[1] = 30.0
    scale = rng.uniform(0.1, 2.0, size) if scaled else None
    solver = Lbfgs(scale=scale)
    device, accepted = any_kernels.device, []
    steps = Steps(device, start, solver)
    # Where the curvature changes its sign, roundings grow from step to step.
    close = {"rtol": 0, "atol": 2e-4}
    for query, moved, stuck in on_host(function, start, solver, 16):
        np.testing.assert_allclose(steps.take(function), query, **close)
        np.testing.assert_array_equal(device.to_host(steps.solver.moved), moved)
        np.testing.assert_array_equal(device.to_host(steps.solver.stuck), stuck)
        accepted.append(moved)
    assert np.any(accepted)
    if function is walled:
        assert not np.any([row[1] for row in accepted])
        assert device.to_host(steps.solver.stuck)[1]


def test_the_minimum_of_a_valley_is_found(any_kernels: Any) -> None:
    start = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 7)).astype(np.float32)
    steps = Steps(any_kernels.device, start, Lbfgs())
    for _ in range(60):
        steps.take(valley)
    # Float32 gradients in a flat valley.
    np.testing.assert_allclose(any_kernels.device.to_host(steps.query), 1.0, atol=1e-2)


def test_an_item_that_has_ended_stays_as_it_is(kernels: Any) -> None:
    device, start = kernels.device, np.full((3, 5), 0.4, np.float32)
    steps = Steps(device, start, Lbfgs())
    steps.take(bowl)
    device.upload(steps.ended, np.array([0, 1, 0], np.int32))
    before = {name: device.to_host(array) for name, array in steps.solver.arrays.items()}
    for _ in range(3):
        steps.take(bowl)
    for name, array in steps.solver.arrays.items():
        np.testing.assert_array_equal(device.to_host(array)[1], before[name][1])
    query = device.to_host(steps.query)
    assert (query[0] != before["query"][0]).any()
    np.testing.assert_array_equal(query[0], query[2])


def test_a_point_is_looked_at_again_when_the_objective_changes(kernels: Any) -> None:
    device, start = kernels.device, np.full((2, 5), 0.4, np.float32)
    steps = Steps(device, start, Lbfgs())
    host = Lbfgs()
    state = host.init((start,))
    for _ in range(4):
        query = steps.take(bowl)
        value, gradient = bowl(query.astype(np.float64))
        state = host.step(state, value, (gradient.astype(np.float32),))
    rows = np.array([False, True])
    state = host.restart(state, rows)
    device.upload(steps.solver.fresh, rows.astype(np.int32))
    steps.solver.aim(steps.ended)
    for _ in range(4):
        np.testing.assert_allclose(device.to_host(steps.query), state.query[0], atol=1e-5)
        query = steps.take(valley)
        value, gradient = valley(query.astype(np.float64))
        state = host.step(state, value, (gradient.astype(np.float32),))


def test_another_memory_is_refused(kernels: Any) -> None:
    query = kernels.device.zeros((2, 5))
    with pytest.raises(ConfigError, match="keeps 8 pairs; got 3"):
        DeviceLbfgs(kernels.device, Lbfgs(memory=3), query, query)
