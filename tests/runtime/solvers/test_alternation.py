"""The turn of the fast schedule is the minimum of its energy with the reconstruction held."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.runtime.solvers.alternation import Alternation

GRID = np.linspace(0, 1, 2001)  # intensities tried by hand: half a step is the tolerance


@pytest.mark.parametrize("each", [False, True])
def test_a_turn_minimises_the_energy_of_every_pixel(each: bool) -> None:
    rng = np.random.default_rng(0)
    start, made = rng.uniform(-0.2, 1.2, (2, 3, 1, 4, 5)).astype(np.float32)
    start = start.clip(0, 1)
    precision = rng.uniform(0.5, 20, start.shape if each else (3, 1, 1, 1))
    lam = 0.4
    solver = Alternation(0.0, 1.0)
    threshold = (lam / (2 * precision)).astype(np.float32)
    state = solver.step(solver.init((start,)), np.zeros(3), (made, threshold))
    near = GRID[:, None, None, None, None]
    energies = precision * (near - made) ** 2 + lam * np.abs(near - start)
    np.testing.assert_allclose(state.query[0], GRID[energies.argmin(axis=0)], atol=3e-4)


def test_nothing_to_do_is_arrival() -> None:
    start = np.full((2, 1, 3, 3), 0.5, np.float32)
    made = start.copy()
    made[0, 0, 1, 1] = 0.9
    solver = Alternation(0.0, 1.0)
    state = solver.step(solver.init((start,)), np.zeros(2), (made, np.zeros((2, 1, 1, 1), "f4")))
    np.testing.assert_array_equal(state.query[0] != start, made != start)
    np.testing.assert_array_equal(solver.done(state), [False, True])


def test_an_energy_that_is_no_number_ends_the_item() -> None:
    start = np.full((2, 1, 2, 2), 0.5, np.float32)
    solver = Alternation(0.0, 1.0)
    value = np.array([np.nan, 1.0])
    state = solver.step(
        solver.init((start,)), value, (start + 0.1, np.zeros((2, 1, 1, 1), np.float32))
    )
    np.testing.assert_array_equal(solver.done(state), [True, False])
