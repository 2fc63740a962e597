"""What this machine can do at its best, measured in this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from time import perf_counter

import numpy as np

from unblemish.cores import available_cores

_SIDE = 1024  # of the matrices
_COPIED = 64 << 20  # bytes per thread: beyond every cache
_ROUNDS = 7


@dataclass(frozen=True)
class Peaks:
    """Measured limits.

    Args:
        gflops: float32 matrix product of 1024 x 1024, multiply and add counted separately, 10^9/s.
        gemm: what reached it, 'numpy' or 'onnxruntime'.
        gigabytes: memory copied with every core, bytes read plus bytes written, 10^9/s.
        threads: threads used.
    """

    gflops: float
    gemm: str
    gigabytes: float
    threads: int


def measure_peaks(threads: int | None = None) -> Peaks:
    """Measure for about a second. The best of several rounds counts: a limit is no average."""
    count = threads or available_cores()
    rates = {"numpy": _numpy_gemm(), "onnxruntime": _engine_gemm(count)}
    gemm = max(rates, key=lambda name: rates[name])
    return Peaks(rates[gemm], gemm, _copy_bandwidth(count), count)


def _numpy_gemm() -> float:
    a, b = _matrices()
    out = np.empty_like(a)
    return 2e-9 * _SIDE**3 / _fastest(lambda: np.matmul(a, b, out=out))


def _engine_gemm(threads: int) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = resources.files("unblemish.runtime.profiling").joinpath("matmul.onnx").read_bytes()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    a, b = _matrices()
    return 2e-9 * _SIDE**3 / _fastest(lambda: session.run(None, {"a": a, "b": b}))


def _copy_bandwidth(threads: int) -> float:
    sources = [np.ones(_COPIED // 4, np.float32) for _ in range(threads)]
    targets = [np.zeros_like(source) for source in sources]
    with ThreadPoolExecutor(threads) as pool:  # copyto releases the GIL
        seconds = _fastest(lambda: list(pool.map(np.copyto, targets, sources)))
    return 2e-9 * _COPIED * threads / seconds


def _matrices() -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], ...]:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    return a, b


def _fastest(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_ROUNDS):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return min(times)
