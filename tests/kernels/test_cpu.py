"""What only the compiled kernels promise: results free of the thread count, threads, forks."""

from __future__ import annotations

import os
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError

pytest.importorskip("unblemish.kernels._cpu", reason="this install was made without a C++ compiler")

from unblemish.kernels import default_kernels
from unblemish.kernels.cpu import CpuKernels, instruction_sets

LARGE = (2, 3, 501, 503)  # above the size from which threads share the work


def _run(kernels: CpuKernels, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    x, g, p, m, v = (rng.normal(size=LARGE).astype(np.float32) for _ in range(5))
    lam, scale = np.full(2, 0.3, np.float32), np.full(2, 0.7, np.float32)
    mask, cotangent, objective = np.empty_like(x[:, :1]).copy(), np.empty_like(x), np.empty(2)
    l1, l2, squared, largest = np.empty((4, 2))
    kernels.rgi_closed_form(x, g, lam, scale, mask=mask, cotangent=cotangent, objective=objective)
    kernels.residual_l1(x, g, scale, cotangent=np.empty_like(x), objective=l1)
    kernels.residual_l2(x, g, scale, cotangent=np.empty_like(x), objective=l2, weight=mask)
    kernels.adam(p, g, m, np.abs(v), step=2, lr=0.1)
    kernels.norms(x, squared=squared, largest=largest)
    rows = g.reshape(2, -1)
    kernels.project_ball(rows, centre=None, radius=np.array([1, 2], np.float32))
    return [mask, cotangent, objective, l1, l2, p, m, squared, largest, rows]


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    for one, many in zip(_run(CpuKernels(1)), _run(CpuKernels(threads)), strict=True):
        np.testing.assert_array_equal(one, many)


def test_one_object_serves_several_python_threads() -> None:
    kernels = CpuKernels(2)
    expected = [_run(CpuKernels(1), seed) for seed in range(3)]
    found: dict[int, list[list[Any]]] = {seed: [] for seed in range(3)}

    def work(seed: int) -> None:
        for _ in range(4):
            found[seed].append(_run(kernels, seed))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed, runs in found.items():
        assert len(runs) == 4
        for run in runs:
            for one, other in zip(expected[seed], run, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same() -> None:
    kernels = CpuKernels(2)
    expected = _run(kernels)
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(a, b) for a, b in zip(expected, _run(kernels), strict=True))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_calls_allocate_nothing_in_python() -> None:
    kernels = CpuKernels(1)
    x, g, cotangent = (np.zeros((1, 3, 64, 64), np.float32) for _ in range(3))
    mask, objective, ones = (
        np.zeros((1, 1, 64, 64), np.float32),
        np.zeros(1),
        np.ones(1, np.float32),
    )

    def call() -> None:
        kernels.rgi_closed_form(
            x, g, ones, ones, mask=mask, cotangent=cotangent, objective=objective
        )

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
    assert peak < 4096  # argument objects; the smallest image here has 16384 bytes


def test_threads_default_to_the_processors_and_must_be_positive() -> None:
    assert CpuKernels().threads >= 1
    assert CpuKernels(3).threads == 3
    with pytest.raises(ConfigError, match="at least one thread, found threads=0"):
        CpuKernels(0)


def test_instruction_set_defaults_to_the_widest_and_can_be_chosen() -> None:
    available = instruction_sets()
    assert available[0] == "baseline"
    assert CpuKernels().instruction_set == available[-1]
    for name in available:
        assert CpuKernels(instruction_set=name).instruction_set == name
    with pytest.raises(ConfigError, match=r"instruction_set='mmx'.*baseline"):
        CpuKernels(instruction_set="mmx")


def test_default_kernels_keep_to_the_threads_asked_for() -> None:
    kernels = default_kernels(1)
    assert isinstance(kernels, CpuKernels)
    assert kernels.threads == 1
