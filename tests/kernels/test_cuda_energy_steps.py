"""What searches of energies ask of the CUDA kernels beyond the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adam_steps

SHAPES = [(1, 1, 1, 1), (3, 3, 9, 11), (2, 1, 1, 19), (2, 2, 16, 12)]


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Any:
    if request.param == "gpu":
        return request.getfixturevalue("gpu_kernels")
    return CudaKernels(driver=request.getfixturevalue("make_driver")())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("adam", [False, True])
def test_steps_by_a_table_are_those_by_numbers(
    kernels: Any, shape: tuple[int, ...], adam: bool
) -> None:
    """The constants of step t are row t - 1; `at` says which step was settled last."""
    rng = np.random.default_rng(0)
    x, start, pulled, direct, made = (rng.normal(size=shape).astype(np.float32) for _ in range(5))
    mask = rng.random((shape[0], 1, *shape[2:]), dtype=np.float32)
    lam, rate = (rng.uniform(0.1, 0.5, shape[0]).astype(np.float32) for _ in range(2))
    table = adam_steps(4, 1.0, lower=-0.5, upper=0.5)
    results = []
    for scheduled in (False, True):
        place, sums = x.copy(), [np.zeros(shape[0]) for _ in range(3)]
        moments = [np.zeros(shape, np.float32) if adam else None for _ in range(2)]
        for step in range(1, 5):
            common = {
                "direct": direct, "mask": mask, "restored": made, "first": moments[0],
                "second": moments[1], "l1": sums[0], "squared_change": sums[1],
                "largest_change": sums[2], "direct_factor": -1.0,
            }  # fmt: skip
            arrays = place, start, pulled * step, lam, rate
            if scheduled:
                at = np.array([step - 2], np.int32)
                kernels.energy_step_scheduled(*arrays, steps=table, at=at, **common)
            else:
                kernels.energy_step(*arrays, step=step, lower=-0.5, upper=0.5, **common)
        results.append([place, *sums, *(m for m in moments if m is not None)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (results[0][0] != x).any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_variance_by_its_logarithm(kernels: Any, shape: tuple[int, ...]) -> None:
    s = np.random.default_rng(1).uniform(-40, 40, shape).astype(np.float32)
    out = np.empty_like(s)
    kernels.half_variance(s, out=out)
    np.testing.assert_allclose(out, np.exp(2 * s.astype(np.float64)), rtol=5e-6)


def test_a_variance_beyond_float32_is_infinite_and_below_it_nothing(kernels: Any) -> None:
    s = np.array([50.0, -50.0, np.nan, 0.0, np.inf], np.float32).reshape(1, 1, 1, 5)
    out = np.empty_like(s)
    kernels.half_variance(s, out=out)
    np.testing.assert_array_equal(out[0, 0, 0], [np.inf, 0, np.nan, 1, np.inf])


def test_another_shape_is_refused(kernels: Any) -> None:
    s, out = np.zeros((1, 1, 2, 3), np.float32), np.zeros((1, 1, 3, 2), np.float32)
    with pytest.raises(ShapeError, match="half_variance"):
        kernels.half_variance(s, out=out)
