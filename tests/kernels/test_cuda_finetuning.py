"""What fine-tuning adds to an objective on the device, against float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels

SHAPES = [(1, 1, 1, 1), (2, 3, 9, 11), (3, 5, 4, 25), (1, 2, 43, 23), (2, 3, 64, 64)]
# float32 arithmetic on numbers near 1, sums in float64.
ELEMENT, SUM = {"rtol": 2e-6, "atol": 2e-6}, {"rtol": 1e-6}


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> CudaKernels:
    """The CUDA kernels, on the driver double and on the GPU."""
    if request.param == "gpu":
        found: CudaKernels = request.getfixturevalue("gpu_kernels")
        return found
    return CudaKernels(driver=request.getfixturevalue("make_driver")(multiprocessors=2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_hold_adds_value_and_derivative(
    cuda: CudaKernels, shape: tuple[int, ...], shared: bool
) -> None:
    rng = np.random.default_rng([*shape, shared])
    g, before, cotangent = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    per = (shape[0], 1, *shape[2:]) if shared else shape
    mask = rng.uniform(-0.5, 1.5, per).astype(np.float32)
    scale = rng.uniform(0.1, 2, shape[0]).astype(np.float32)
    objective = rng.normal(size=shape[0])
    weight = scale.astype(np.float64)[:, None, None, None] * np.square(mask, dtype=np.float64)
    drift = g.astype(np.float64) - before
    slope = cotangent + 2 * weight * drift
    value = objective + (weight * drift**2).sum(axis=(1, 2, 3))
    cuda.hold(g, before, mask, scale, cotangent=cotangent, objective=objective)
    np.testing.assert_allclose(cotangent, slope, **ELEMENT)
    np.testing.assert_allclose(objective, value, **SUM)


def test_hold_of_extreme_values_stays_finite_where_it_is(cuda: CudaKernels) -> None:
    g = np.full((1, 1, 2, 3), 1e30, np.float32)
    before, mask, scale = np.zeros_like(g), np.ones_like(g), np.full(1, 1e-3, np.float32)
    cotangent, objective = np.zeros_like(g), np.zeros(1)
    cuda.hold(g, before, mask, scale, cotangent=cotangent, objective=objective)
    np.testing.assert_allclose(objective, [6e57], rtol=1e-6)
    np.testing.assert_allclose(cotangent, np.full(g.shape, 2e27), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("length", [1, 19, 989, 4096])
def test_rows_that_are_not_finite_have_no_objective(
    cuda: CudaKernels, value: float, length: int
) -> None:
    x = np.full((3, length), np.finfo(np.float32).max, np.float32)
    x[1, length // 2] = value
    x[2] = 0.0
    objective = np.array([1.0, 2.0, 3.0])
    cuda.void_rows(x, objective=objective)
    np.testing.assert_array_equal(objective, [1.0, np.nan, 3.0])


def test_what_does_not_fit_is_refused(cuda: CudaKernels) -> None:
    g = np.zeros((2, 3, 4, 5), np.float32)
    good: dict[str, Any] = {"before": g.copy(), "mask": g.copy(), "scale": np.ones(2, np.float32)}
    outputs: dict[str, Any] = {"cotangent": g.copy(), "objective": np.zeros(2)}
    for wrong in (
        {"before": g[:1]},
        {"mask": g[:, :2]},
        {"scale": np.ones(3, np.float32)},
        {"objective": np.zeros(2, np.float32)},
        {"cotangent": g},
    ):
        with pytest.raises(ShapeError, match="hold: "):
            cuda.hold(g, **{**good, **outputs, **wrong})
    with pytest.raises(ShapeError, match="void_rows: "):
        cuda.void_rows(g, objective=np.zeros(3))
