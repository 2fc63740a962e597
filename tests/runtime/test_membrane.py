"""Surfaces over holes against the linear system that defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.runtime.membrane import extend, membrane, roughness

# `extend` stops by the slope of the energy; over a hole of twenty pixels the error is larger.
NEAR = 4e-3


def energy(hole: Any, bending: bool = True) -> Any:
    """Q of the energy u^T Q u of a plate under tension, or a membrane, over a hole (h, w)."""
    height, width = hole.shape
    number = np.arange(height * width).reshape(height, width)
    pairs = [*zip(number[1:].ravel(), number[:-1].ravel(), strict=True)]
    pairs += [*zip(number[:, 1:].ravel(), number[:, :-1].ravel(), strict=True)]
    laplacian, tension = np.zeros((2, number.size, number.size))
    inside = hole.ravel()
    for i, j in pairs:
        block = np.ix_([i, j], [i, j])
        laplacian[block] += [[1, -1], [-1, 1]]
        if inside[i] or inside[j]:
            tension[block] += [[1, -1], [-1, 1]]
    near = inside | (laplacian[:, inside] != 0).any(axis=1)
    return tension + bending * laplacian[near].T @ laplacian[near]


def exact(values: Any, hole: Any, bending: bool = True) -> Any:
    """(h, w) with the hole where the energy is smallest, by a dense solver."""
    matrix, inside = energy(hole, bending), hole.ravel()
    filled = values.astype(np.float64).ravel()
    known = matrix[np.ix_(inside, ~inside)] @ filled[~inside]
    filled[inside] = np.linalg.solve(matrix[np.ix_(inside, inside)], -known)
    return filled.reshape(values.shape)


def holes(height: int, width: int) -> Any:
    hole = np.zeros((height, width), np.bool_)
    hole[height // 4 : height // 2, width // 5 : width // 2] = True
    hole[: height // 5, : width // 6] = True  # at a corner of the image
    hole[np.arange(min(height, width)), np.arange(min(height, width))] = True  # one pixel wide
    return hole


@pytest.mark.parametrize(("height", "width"), [(5, 7), (19, 23), (64, 41)])
def test_a_hole_becomes_the_surface_of_least_energy(height: int, width: int) -> None:
    values = np.random.default_rng(0).random((height, width)).astype(np.float32)
    hole = holes(height, width)
    found = extend(np.where(hole, np.float32(7), values), hole)
    np.testing.assert_array_equal(found[~hole], values[~hole])
    np.testing.assert_allclose(found, exact(values, hole), atol=NEAR)
    flat = membrane(np.where(hole, np.float32(7), values), hole)
    np.testing.assert_array_equal(flat[~hole], values[~hole])
    np.testing.assert_allclose(flat, exact(values, hole, bending=False), atol=NEAR)


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
    np.testing.assert_array_equal(membrane(values, hole)[1], 0)


def test_a_slope_is_carried_through_a_large_hole() -> None:
    values = np.linspace(0.2, 0.8, 400, dtype=np.float32) * np.ones((300, 1), np.float32)
    hole = np.zeros((300, 400), np.bool_)
    hole[40:240, 60:330] = True
    for fill in (extend, membrane):
        np.testing.assert_allclose(fill(values * ~hole, hole), values, atol=0.02)


def test_extreme_values_stay_finite_and_near_their_range() -> None:
    values = np.where(np.indices((12, 12)).sum(0) % 2, np.float32(1e6), np.float32(-1e6))
    found = extend(values, holes(12, 12))
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2e6


def test_roughness_is_the_energy_of_every_image() -> None:
    values = np.random.default_rng(3).random((2, 3, 7, 8)).astype(np.float32)
    hole = np.zeros((2, 1, 7, 8), np.bool_)
    hole[0, 0, 2:4, 3] = hole[1, 0, 0, 0] = True
    expected = [
        sum(c.ravel() @ energy(h[0]) @ c.ravel() for c in image.astype(float))
        for image, h in zip(values, hole, strict=True)
    ]
    np.testing.assert_allclose(roughness(values, hole), expected, rtol=1e-5)
