"""What only the compiled terms promise: results free of the thread count, no Python memory."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("unblemish.kernels._cpu", reason="this install was made without a C++ compiler")

from unblemish.kernels.cpu import CpuKernels

# Several bands and blocks of each item, and above the size from which threads share the work; rows
# longer than what is handled at once, and shorter than a band is high.
LARGE = [(2, 3, 301, 303), (1, 1, 61, 5000), (3, 1, 2000, 61)]
SHARING = {"radius": 3, "sigma_space": 1.1, "sigma_colour": 3.0}


def _run(kernels: CpuKernels, shape: tuple[int, ...], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    n, x, g = (rng.random(shape, dtype=np.float32) * 4 for _ in range(3))
    batch, channels = shape[:2]
    free = (rng.random((batch, 1, *shape[2:])) < 0.7).astype(np.uint8)
    weight = np.linspace(0.5, 2, batch, dtype=np.float32)
    means = rng.random((3, channels), dtype=np.float32)
    precisions = np.stack([np.eye(channels, dtype=np.float32)] * 3)
    found: list[Any] = []
    for term in range(3):
        out = {"gradient": np.zeros_like(n), "value": np.zeros(batch)}
        if term == 0:
            kernels.total_variation(n, weight, **out)
        elif term == 1:
            kernels.log_penalty(x, n, weight, free, epsilon=1e-4, **out)
        else:
            kernels.mixture_prior(n, means, precisions, weight, free, **out)
        found += out.values()
    weights = np.empty((batch, 49, *shape[2:]), np.float16)
    kernels.sharing_weights(x, **SHARING, weights=weights)
    shared, direct = np.empty_like(x), np.empty_like(x)
    kernels.share_gradient(g, weights, radius=3, shared=shared)
    kernels.share_gradient_direct(g, x, **SHARING, shared=direct)
    moments = [np.zeros_like(n) for _ in range(4)]
    bounds = {"clip": 1.0, "lower": 0.0, "upper": 4.0, "floor": 0.1}
    for step in (1, 2):
        kernels.adan(n, x, g * step, *moments, free, step=step, rate=weight, **bounds)
    return [*found, weights, shared, direct, n, *moments]


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("instruction_set", [None, "baseline"])
def test_results_do_not_depend_on_the_number_of_threads(
    shape: tuple[int, ...], instruction_set: str | None
) -> None:
    expected = _run(CpuKernels(1, instruction_set=instruction_set), shape)
    for threads in (2, 5):
        found = _run(CpuKernels(threads, instruction_set=instruction_set), shape)
        for one, many in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, many)


def test_results_of_an_item_do_not_depend_on_its_batch() -> None:
    kernels = CpuKernels(1)
    whole = _run(kernels, (5, 3, 37, 53))
    shape = (1, 3, 37, 53)
    rng = np.random.default_rng(0)
    n = rng.random((5, *shape[1:]), dtype=np.float32)[4:] * 4
    gradient, value = np.zeros(shape, np.float32), np.zeros(1)
    kernels.total_variation(n, np.full(1, 2, np.float32), gradient=gradient, value=value)
    np.testing.assert_array_equal(gradient[0], whole[0][4])
    np.testing.assert_array_equal(value[0], whole[1][4])


def test_one_object_serves_several_python_threads() -> None:
    kernels, shape = CpuKernels(2), (1, 3, 200, 211)
    expected = [_run(CpuKernels(1), shape, seed) for seed in range(3)]
    found: dict[int, list[Any]] = {}

    def work(seed: int) -> None:
        found[seed] = [_run(kernels, shape, seed) for _ in range(3)]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(3):
        for run in found[seed]:
            for one, other in zip(expected[seed], run, strict=True):
                np.testing.assert_array_equal(one, other)


def test_calls_allocate_nothing_in_python() -> None:
    kernels = CpuKernels(1)
    x, g, shared = (np.zeros((1, 3, 64, 64), np.float32) for _ in range(3))
    value, weight = np.zeros(1), np.ones(1, np.float32)

    def call() -> None:
        kernels.total_variation(x, weight, gradient=g, value=value)
        kernels.share_gradient_direct(g, x, **SHARING, shared=shared)

    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(10):
            call()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 4096  # argument objects; the image has 49,152 bytes
