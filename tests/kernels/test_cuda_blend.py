"""A turn of `Blending` as a CUDA kernel, against the surface of the host and a linear system."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError, ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.membrane import extend, roughness

# The slope at which conjugate gradients end, 5e-4 of the range, over the least curvature of a hole
# of half a dozen pixels (about 0.3).
CLOSE = {"rtol": 0, "atol": 2e-3}
SHAPES = [(1, 1, 1, 1), (1, 1, 1, 9), (2, 3, 11, 1), (3, 2, 13, 17), (1, 3, 20, 12)]


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Any:
    if request.param == "gpu":
        return request.getfixturevalue("gpu_kernels")
    return CudaKernels(driver=request.getfixturevalue("make_driver")())


def _case(shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any, Any]:
    """Images, reconstructions, holes: the first touches a corner, the last item has none."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.random(shape, dtype=np.float32)
    made = (x + 0.3 * rng.normal(size=shape)).astype(np.float32)
    free = np.zeros((shape[0], 1, *shape[2:]), np.bool_)
    height, width = shape[2:]
    for row in range(max(shape[0] - 1, 1)):
        free[row, 0, : max(height // 3, 1), : max(width // 2, 1)] = True
        free[row, 0, height // 2 : height // 2 + 2 + row, width // 2 : width // 2 + 3] = True
    return x, made, free


def _blended(kernels: Any, x: Any, made: Any, free: Any, ended: Any = None, **box: Any) -> Any:
    out, batch = x.copy(), len(x)
    rough, change = np.full(batch, 7.0), np.full(batch, 7.0)
    kernels.blend(
        out, made, free.astype(np.float32),
        ended=np.zeros(batch, np.int32) if ended is None else ended,
        roughness=rough, largest_change=change, **{"lower": -9.0, "upper": 9.0, **box},
    )  # fmt: skip
    return out, rough, change


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("box", [(-9.0, 9.0), (0.3, 0.6)])
def test_a_turn_is_that_of_the_host(
    kernels: Any, shape: tuple[int, ...], box: tuple[float, float]
) -> None:
    x, made, free = _case(shape)
    found, rough, change = _blended(kernels, x, made, free, lower=box[0], upper=box[1])
    for row in range(shape[0]):  # alone: the host ends all planes together
        hole = np.broadcast_to(free[row], x[row].shape)
        apart = extend(x[row] - made[row], hole, start=x[row] - made[row])
        expected = np.where(hole, np.clip(made[row] + apart, *box), x[row])
        np.testing.assert_allclose(found[row], expected, **CLOSE)
        np.testing.assert_allclose(
            change[row], np.abs(found[row] - x[row]).max(), rtol=1e-6, atol=1e-7
        )
    np.testing.assert_array_equal(
        found[~np.broadcast_to(free, x.shape)], x[~np.broadcast_to(free, x.shape)]
    )
    np.testing.assert_allclose(rough, roughness(x - made, free), rtol=1e-5, atol=1e-9)


def _energy_matrix(hole: Any) -> Any:
    """Q of x^T Q x, the energy of a surface over a hole (h, w): bending and tension."""
    height, width = hole.shape
    number = np.arange(hole.size).reshape(height, width)
    pairs = [pair for row in number for pair in pairwise(row)]
    pairs += [pair for column in number.T for pair in pairwise(column)]
    differences = np.zeros((len(pairs), hole.size))
    for index, (i, j) in enumerate(pairs):
        differences[index, i], differences[index, j] = 1, -1
    inside, laplacian = hole.ravel(), differences.T @ differences
    near = inside | (laplacian[:, inside] != 0).any(axis=1)
    touching = (differences[:, inside] != 0).any(axis=1)
    return laplacian[near].T @ laplacian[near] + differences[touching].T @ differences[touching]


def test_the_surface_is_the_minimum_of_its_energy(kernels: Any) -> None:
    x, made, free = _case((2, 1, 14, 15), seed=1)
    found, rough, _ = _blended(kernels, x, made, free)
    hole = free[0, 0]
    matrix, inside = _energy_matrix(hole), hole.ravel()
    apart = (x[0, 0] - made[0, 0]).astype(np.float64).ravel()
    np.testing.assert_allclose(rough[0], apart @ matrix @ apart, rtol=1e-5)
    known = matrix[np.ix_(inside, ~inside)] @ apart[~inside]
    apart[inside] = -np.linalg.solve(matrix[np.ix_(inside, inside)], known)
    expected = made[0, 0][hole] + apart[inside]
    np.testing.assert_allclose(found[0, 0][hole], expected, **CLOSE)


def test_where_nothing_is_known_the_reconstruction_is_taken(kernels: Any) -> None:
    x, made, free = _case((2, 3, 6, 7), seed=2)
    free[0] = True
    found, _, change = _blended(kernels, x, made, free, lower=0.0, upper=1.0)
    np.testing.assert_array_equal(found[0], np.clip(made[0], 0, 1))
    np.testing.assert_array_equal(found[1], x[1])
    assert change[1] == 0


def test_items_that_have_ended_stay(kernels: Any) -> None:
    x, made, free = _case((3, 2, 13, 17), seed=3)
    free[2] = free[1]
    found, rough, change = _blended(kernels, x, made, free, np.array([0, 2, 0], np.int32))
    np.testing.assert_array_equal(found[1], x[1])
    assert (found[0] != x[0]).any()
    assert (found[2] != x[2]).any()
    assert np.isfinite(rough[[0, 2]]).all()
    assert (change[[0, 2]] > 0).all()


def test_what_is_not_finite_stays_in_its_item(kernels: Any) -> None:
    x, made, free = _case((3, 1, 9, 9), seed=4)
    made[0, 0, 4, 4], made[1, 0, 1, 1] = np.nan, np.inf
    free[1:] = free[0]
    found, rough, _ = _blended(kernels, x, made, free)
    assert not np.isfinite(rough[:2]).any()
    assert np.isfinite(rough[2])
    assert np.isfinite(found[2]).all()


def test_arguments_are_checked(kernels: Any) -> None:
    x, made, free = _case((2, 3, 6, 7))
    with pytest.raises(ShapeError, match="blend"):
        _blended(kernels, x, made, np.repeat(free, 3, axis=1))
    with pytest.raises(ConfigError, match="is empty"):
        _blended(kernels, x, made, free, lower=1.0, upper=0.0)
