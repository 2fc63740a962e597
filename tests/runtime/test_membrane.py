"""Harmonic surfaces against the linear system that defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.runtime.membrane import extend, roughness

# `extend` stops where every pixel is this near to the mean of its neighbours; the error of a hole
# twenty pixels wide is some ten times that.
NEAR = 2e-3


def exact(values: Any, hole: Any) -> Any:
    """(h, w) with every pixel of the hole the mean of its neighbours, by a dense solver."""
    places = np.argwhere(hole)
    number = {tuple(p): i for i, p in enumerate(places)}
    matrix, known = np.zeros((len(places), len(places))), np.zeros(len(places))
    for (y, x), row in number.items():
        for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= other[0] < values.shape[0] and 0 <= other[1] < values.shape[1]):
                continue
            matrix[row, row] += 1
            if other in number:
                matrix[row, number[other]] -= 1
            else:
                known[row] += values[other]
    filled = values.astype(np.float64)
    filled[hole] = np.linalg.solve(matrix, known)
    return filled


def holes(height: int, width: int) -> Any:
    hole = np.zeros((height, width), np.bool_)
    hole[height // 4 : height // 2, width // 5 : width // 2] = True
    hole[: height // 5, : width // 6] = True  # at a corner of the image
    hole[np.arange(min(height, width)), np.arange(min(height, width))] = True  # one pixel wide
    return hole


@pytest.mark.parametrize(("height", "width"), [(5, 7), (19, 23), (64, 41)])
def test_a_hole_becomes_the_mean_of_its_surroundings(height: int, width: int) -> None:
    values = np.random.default_rng(0).random((height, width)).astype(np.float32)
    hole = holes(height, width)
    found = extend(np.where(hole, np.float32(np.nan), values), hole)
    np.testing.assert_array_equal(found[~hole], values[~hole])
    np.testing.assert_allclose(found, exact(values, hole), atol=NEAR)


def test_planes_are_solved_as_each_alone_and_a_start_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((2, 3, 20, 24)).astype(np.float32)
    hole = np.stack([holes(20, 24), holes(24, 20).T])[:, None]
    together = extend(values, hole)
    guessed = extend(values, hole, start=rng.random(values.shape).astype(np.float32))
    np.testing.assert_allclose(together, guessed, atol=2 * NEAR)
    for row, channel in np.ndindex(2, 3):
        expected = exact(values[row, channel], hole[row, 0])
        np.testing.assert_allclose(together[row, channel], expected, atol=NEAR)


def test_a_plane_without_hole_stays_and_one_that_is_all_hole_is_zero() -> None:
    values = np.random.default_rng(2).random((3, 6, 9)).astype(np.float32)
    hole = np.zeros(values.shape, np.bool_)
    hole[1] = True
    hole[2, 2:4, 3:5] = True
    found = extend(values, hole)
    np.testing.assert_array_equal(found[0], values[0])
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[2], exact(values[2], hole[2]), atol=NEAR)
    np.testing.assert_array_equal(extend(values, np.zeros((6, 9), np.bool_)), values)


def test_a_slope_is_carried_through_a_large_hole() -> None:
    values = np.linspace(0.2, 0.8, 400, dtype=np.float32) * np.ones((300, 1), np.float32)
    hole = np.zeros((300, 400), np.bool_)
    hole[40:240, 60:330] = True
    np.testing.assert_allclose(extend(values * ~hole, hole), values, atol=0.02)


def test_extreme_values_stay_in_range() -> None:
    values = np.where(np.indices((12, 12)).sum(0) % 2, np.float32(1e6), np.float32(-1e6))
    hole = holes(12, 12)
    found = extend(values, hole)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1e6


def test_roughness_counts_pairs_in_and_at_the_hole() -> None:
    values = np.random.default_rng(3).random((2, 3, 7, 8)).astype(np.float32)
    hole = np.zeros((2, 1, 7, 8), np.bool_)
    hole[0, 0, 2:4, 3] = hole[1, 0, 0, 0] = True
    expected = np.zeros(2)
    for b, c, y, x in np.ndindex(2, 3, 7, 8):
        for other in ((y + 1, x), (y, x + 1)):
            if other[0] < 7 and other[1] < 8 and (hole[b, 0, y, x] or hole[(b, 0, *other)]):
                expected[b] += (values[b, c, y, x] - values[(b, c, *other)]) ** 2
    np.testing.assert_allclose(roughness(values, hole), expected, rtol=1e-5)
