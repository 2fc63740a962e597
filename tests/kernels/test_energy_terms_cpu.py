"""What only the compiled terms promise: results free of the thread count, no Python memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("unblemish.kernels._cpu", reason="this install was made without a C++ compiler")

from unblemish.kernels.cpu import CpuKernels

# Several patches of each item, and above the size from which threads share the work.
LARGE = [(2, 3, 301, 303), (1, 1, 61, 5000), (3, 1, 2000, 61)]


def _run(kernels: CpuKernels, shape: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    x, g = rng.random((2, *shape), dtype=np.float32)
    dissimilarity = np.empty((shape[0], 1, *shape[2:]), np.float32)
    direct, cotangent, objective = np.empty(shape, "f"), np.empty(shape, "f"), np.empty(shape[0])
    out = {"dissimilarity": dissimilarity, "direct": direct, "cotangent": cotangent}
    item = np.linspace(0.5, 2, shape[0], dtype=np.float32)
    kernels.dssim(x, g, item, data_range=1.0, objective=objective, **out)
    return [*out.values(), objective, *_stepped(kernels, x, g, direct, item)]


def _stepped(kernels: CpuKernels, x: Any, g: Any, direct: Any, item: Any) -> list[Any]:
    moved, first, second = x.copy(), np.zeros_like(x), np.zeros_like(x)
    sums = {name: np.empty(len(x)) for name in ("l1", "squared_change", "largest_change")}
    given = {"direct": direct, "mask": None, "restored": g, "first": first, "second": second}
    for step in (1, 2):
        kernels.energy_step(
            moved, x, g, item, 0.1 * item, **given, **sums, step=step, proximal=step == 2
        )
    return [moved, first, second, *sums.values()]


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
    whole = _run(kernels, (3, 3, 37, 53))
    x, g = np.random.default_rng(0).random((2, 3, 3, 37, 53), dtype=np.float32)
    direct, objective = np.empty((1, 3, 37, 53), np.float32), np.empty(1)
    out = {"dissimilarity": None, "direct": direct, "cotangent": None, "objective": objective}
    kernels.dssim(x[2:], g[2:], np.full(1, 2, np.float32), data_range=1.0, **out)
    np.testing.assert_array_equal(direct[0], whole[1][2])
    np.testing.assert_array_equal(objective[0], whole[3][2])


def test_calls_allocate_nothing_in_python() -> None:
    kernels = CpuKernels(1)
    x, g, direct, cotangent = (np.zeros((1, 3, 64, 64), np.float32) for _ in range(4))
    one, objective = np.ones(1, np.float32), np.empty(1)
    out = {"dissimilarity": None, "direct": direct, "cotangent": cotangent}

    def call() -> None:
        kernels.dssim(x, g, one, data_range=1.0, objective=objective, **out)
        kernels.energy_step(moved, x, direct, one, one, **given, **sums)

    moved, sums = x.copy(), {name: np.empty(1) for name in ("l1", "squared_change")}
    sums["largest_change"] = np.empty(1)
    given = {"direct": cotangent, "mask": None, "restored": g, "first": None, "second": None}
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
