"""What fine-tuning adds to an objective on the device, against float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adam_steps
from unblemish.runtime.device.steps.finetuning import WeightMemory, chunk_table

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


LENGTHS = [1, 19, 64, 989, 20_000]


def _chunks(cuda: CudaKernels, gradients: list[Any]) -> tuple[WeightMemory, Any, list[Any]]:
    """Memory for weights as these gradients, their table, and the gradients on the device."""
    named = {str(i): array for i, array in enumerate(gradients)}
    memory = WeightMemory(cuda.device, {name: array.shape for name, array in named.items()})
    there = {name: cuda.device.to_device(array) for name, array in named.items()}
    table = chunk_table(memory, there)
    assert table[:, 2].sum() == sum(LENGTHS)
    return memory, cuda.device.to_device(table), list(there.values())


def test_adam_of_all_weights_at_once_is_adam_of_each(cuda: CudaKernels) -> None:
    rng = np.random.default_rng(5)
    gradients = [rng.normal(size=n).astype(np.float32) for n in LENGTHS]
    weights = [rng.normal(size=n).astype(np.float32) for n in LENGTHS]
    memory, table, _ = _chunks(cuda, gradients)
    for part, array in zip(memory.parts.values(), weights, strict=True):
        cuda.device.upload(part, array)
    m, v = cuda.device.zeros(memory.flat.shape), cuda.device.zeros(memory.flat.shape)
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    steps = cuda.device.to_device(adam_steps(3, 0.01))
    for step in range(3):
        at = cuda.device.to_device(np.full(1, step, np.int32))
        cuda.adam_chunks(memory.flat, m, v, table=table, steps=steps, at=at)
        for w, g, (first, second) in zip(weights, gradients, moments, strict=True):
            cuda.adam(w, g, first, second, step=step + 1, lr=0.01)
    for part, expected in zip(memory.parts.values(), weights, strict=True):
        np.testing.assert_array_equal(cuda.device.to_host(part), expected)
    used = sum(-(-n // 64) * 64 for n in LENGTHS)
    assert memory.flat.size == used
    assert np.count_nonzero(cuda.device.to_host(m)) == sum(LENGTHS)  # nothing between the parts


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", range(len(LENGTHS)))
def test_a_gradient_that_is_not_finite_voids_the_objective(
    cuda: CudaKernels, value: float, which: int
) -> None:
    largest = np.finfo(np.float32).max
    gradients = [np.full(n, largest, np.float32) for n in LENGTHS]
    _, table, there = _chunks(cuda, gradients)
    objective = cuda.device.to_device(np.ones(1))
    cuda.void_chunks(table, objective=objective)
    assert cuda.device.to_host(objective)[0] == 1.0
    gradients[which][-1] = value
    cuda.device.upload(there[which], gradients[which])
    cuda.void_chunks(table, objective=objective)
    assert np.isnan(cuda.device.to_host(objective)[0])


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
    for table in (np.zeros((4, 2), np.uint64), np.zeros((0, 3), np.uint64), np.zeros((4, 3))):
        with pytest.raises(ShapeError, match="table"):
            cuda.void_chunks(table, objective=np.zeros(1))
    with pytest.raises(ShapeError, match="objective"):
        cuda.void_chunks(np.zeros((1, 3), np.uint64), objective=np.zeros(2))
    with pytest.raises(ShapeError, match="adam_chunks: m"):
        cuda.adam_chunks(
            g, g[:1], g.copy(), table=np.zeros((1, 3), np.uint64), steps=g, at=np.zeros(1, np.int32)
        )
