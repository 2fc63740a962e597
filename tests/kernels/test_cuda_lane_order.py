"""The kernels give the same bits whichever lane comes first: no __syncthreads is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import CDLL, c_int
from typing import Any

import numpy as np
import pytest
from cuda_emulation import SOURCES
from emulated_driver import EmulatedDriver

from unblemish.kernels.cuda import CudaKernels

SHAPE = (2, 3, 21, 37)
CELLS = (2, 9, 40)


def _random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng([seed, *shape]).random(shape).astype(dtype) + dtype(0.1)


def _doubles() -> Any:
    return np.zeros(2)


def _images(kernels: Any) -> list[Any]:
    x, g = _random(*SHAPE), _random(*SHAPE, seed=1)
    lam, scale = _random(2), _random(2, seed=1)
    mask, out, value = _random(2, 1, 21, 37), np.zeros(SHAPE, np.float32), _doubles()
    kernels.rgi_closed_form(x, g, lam, scale, mask=mask, cotangent=out, objective=value)
    found = [mask.copy(), out.copy(), value.copy()]
    kernels.rgi_gradient(
        x, g, mask, lam, scale, cotangent=out, mask_gradient=np.zeros_like(mask), objective=value
    )
    found += [out.copy(), value.copy()]
    kernels.residual_l1(x, g, scale, cotangent=out, objective=value, weight=mask)
    found += [out.copy(), value.copy()]
    kernels.hold(x, g, mask, scale, cotangent=out, objective=value)
    found += [out.copy(), value.copy()]
    rows = x.reshape(2, -1).copy()
    kernels.project_ball(rows, centre=None, radius=lam)
    kernels.norms(x, squared=value, largest=_doubles())
    return [*found, rows, value]


def _energy(kernels: Any) -> list[Any]:
    x, g, scale = _random(*SHAPE), _random(*SHAPE, seed=1), _random(2)
    found = []
    for window in (11, 33):
        shown, direct, cotangent = _random(2, 1, 21, 37), np.zeros_like(x), np.zeros_like(x)
        value = _doubles()
        kernels.dssim(
            x, g, scale, data_range=1.0, dissimilarity=shown, direct=direct, cotangent=cotangent,
            objective=value, window=window, sigma=4.0,
        )  # fmt: skip
        found += [shown, direct, cotangent, value]
    sums = [_doubles() for _ in range(3)]
    kernels.energy_step(
        x, g, _random(*SHAPE, seed=3), scale, scale, direct=None, mask=None, restored=g,
        first=None, second=None, l1=sums[0], squared_change=sums[1], largest_change=sums[2],
    )  # fmt: skip
    s = _random(2, 1, 21, 37)
    kernels.gaussian_nll(
        x, g, s, scale, cotangent=direct, log_scale_cotangent=shown, objective=value
    )
    free, ended = (s > 0.7).astype(np.float32), np.zeros(2, np.int32)
    filled, rough, change = x.copy(), _doubles(), _doubles()
    kernels.blend(
        filled, g, free, ended=ended, roughness=rough, largest_change=change, lower=0.0, upper=1.0
    )
    return [*found, x, *sums, direct, shown, value, filled, rough, change]


def _terms(kernels: Any) -> list[Any]:
    n, weight, gradient, value = (
        _random(*SHAPE),
        _random(2),
        np.zeros(SHAPE, np.float32),
        _doubles(),
    )
    free = np.ones((2, 1, 21, 37), np.uint8)
    kernels.total_variation(n, weight, gradient=gradient, value=value)
    kernels.log_penalty(
        _random(*SHAPE, seed=1), n, weight, free, epsilon=1e-3, gradient=gradient, value=value
    )
    means, precisions = _random(4, 3), np.tile(np.eye(3, dtype=np.float32), (4, 1, 1))
    kernels.mixture_prior(n, means, precisions, weight, free, gradient=gradient, value=value)
    shared = np.zeros_like(n)
    kernels.share_gradient_direct(
        gradient, n, radius=3, sigma_space=9.0, sigma_colour=0.1, shared=shared
    )
    return [gradient, value, shared]


def _features(kernels: Any) -> list[Any]:
    f, mean, slope = _random(*CELLS), _random(9, 40), np.zeros(CELLS, np.float32)
    cells = np.tile(np.arange(9, dtype=np.int32), (2, 1))
    scores = np.zeros((2, 9), np.float32)
    kernels.mahalanobis(f, mean, _random(9, 820) / 40, cells, scores=scores, cotangent=slope)
    found = [scores.copy(), slope.copy()]
    kernels.mahalanobis_low_rank(
        f, mean, _random(9, 40, 7) / 40, _random(9), cells, scores=scores, cotangent=slope
    )
    found += [scores.copy(), slope.copy()]
    bank, index = _random(150, 40), np.zeros((18, 5), np.int32)
    distances = np.zeros((18, 5), np.float32)
    kernels.top_candidates(f.reshape(18, 40), bank, index=index, distances=distances)
    chosen = np.zeros((2, 9), np.int32)
    kernels.nearest_candidate(
        f, bank, index.reshape(2, 9, 5), scores=scores, cotangent=slope, chosen=chosen
    )
    return [*found, index, distances, scores, slope, chosen]


def _latents(kernels: Any) -> list[Any]:
    from unblemish.runtime.device.steps.lbfgs import DeviceLbfgs
    from unblemish.runtime.solvers.lbfgs import Lbfgs

    device, z = kernels.device, _random(2, 300)
    query, gradient = device.empty(z.shape), device.empty(z.shape)
    value, ended = device.empty((2,), np.float64), device.zeros((2,), np.int32)
    solver = DeviceLbfgs(device, Lbfgs(scale=_random(300, dtype=np.float64)), query, gradient)
    solver.start(z)
    for _ in range(4):
        asked = device.to_host(query)
        device.upload(value, np.cos(3 * asked).sum(axis=1, dtype=np.float64))
        device.upload(gradient, -3 * np.sin(3 * asked))
        solver.step(value, ended)
        solver.aim(ended)
    slope, sums = z.copy(), _doubles()
    kernels.latent_prior(z, 0.3, gradient=slope, objective=sums)
    kernels.disbelief(z, 0.3, slope=slope, objective=sums)
    return [*(device.to_host(array) for array in solver.arrays.values()), slope, sums]


def _rows(kernels: Any) -> list[Any]:
    x, partial = kernels.device.to_device(_random(3, 989)), kernels.device.zeros((3, 4), np.float64)
    kernels.device.launch("sum_rows", (4, 3), x=x, partial=partial, batch=3, length=989)
    return [kernels.device.to_host(partial)]


@pytest.fixture
def orders(emulated: Callable[[str], CDLL]) -> Iterator[list[c_int]]:
    found = [c_int.in_dll(emulated(source), "emulation_order") for source in SOURCES]
    yield found
    for order in found:
        order.value = 0


@pytest.mark.parametrize("work", [_images, _energy, _terms, _features, _rows, _latents])
def test_lanes_may_come_in_any_order(
    make_driver: Callable[..., EmulatedDriver], orders: list[c_int], work: Any
) -> None:
    results = []
    for backwards in (0, 1):
        for order in orders:
            order.value = backwards
        results.append(work(CudaKernels(driver=make_driver(multiprocessors=1))))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
