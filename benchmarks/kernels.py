"""Time every kernel against NumPy and eager torch, and its bytes against the copy bandwidth.

    python benchmarks/kernels.py [solvers|f2pad|energy|detectors ...] [--rounds N] [--threads N]
    python benchmarks/kernels.py [sets ...] --cuda

Each line is a paired comparison: the candidates take turns within every round, and the ratio is the
median over the rounds of the ratio within a round, so that a slow moment of the machine meets them
all. torch's side is written as one would write it: autograd for slopes, `unfold` for sharing,
einsum and cdist for features; see `kernel_jobs`. `of copy` is bytes moved (every array once: read,
written, or both) per second over what `numpy.copyto` reaches with as many bytes on one thread in
the same round. Above 100 % the kernel reuses caches or threads better than a copy does; where an
operation computes much for each byte (sharing, the search) it says little. `error` is the largest
difference to the float64 reference over the largest number, in the worst of the outputs.

With `--cuda` the CUDA kernels are timed on device arrays, replayed as a graph, beside a copy of as
many bytes on the device; arrays of a batch that fills the chip are added.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from kernel_jobs import energy_terms, feature_terms, image_terms, on_device, solvers
from kernel_jobs.job import Job

from unblemish.kernels.api import Kernels
from unblemish.kernels.cpu import CpuKernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels

SLICES = 5
LONG = 0.2  # s: of what takes longer, one slice is enough

SETS: dict[str, dict[str, Callable[[], list[Job]]]] = {
    "solvers": {
        "x".join(map(str, shape)): partial(solvers.jobs, shape)
        for shape in [(1, 1, 128, 128), (8, 3, 128, 128), (1, 3, 1024, 1024)]
    },
    "f2pad": {
        "1x3x224x224": lambda: image_terms.jobs(224, 224),
        "1x3x512x512": lambda: image_terms.jobs(512, 512),
    },
    "energy": {
        "x".join(map(str, shape)): partial(energy_terms.jobs, shape)
        for shape in [(1, 1, 128, 128), (8, 3, 128, 128), (1, 3, 512, 512)]
    },
    "detectors": {
        "56x56x100": lambda: [feature_terms.mahalanobis(56 * 56, 100)],
        "56x56x448, rank 15": lambda: [feature_terms.mahalanobis_low_rank(56 * 56, 448, 15)],
        "28x28x384, 4000 rows": lambda: feature_terms.bank_jobs(28 * 28, 384, 4000, 50),
    },
}


# Arrays of 38 MB: several of them are more than the caches hold.
FULL = (64, 3, 224, 224)
FILLING: dict[str, Callable[[], list[Job]]] = {
    "solvers": partial(solvers.jobs, FULL),
    "energy": partial(energy_terms.jobs, FULL),
}


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(candidates: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return seconds per call, a list of rounds for each candidate.

    In a round the candidates take turns up to `SLICES` times, and each keeps its fastest slice: a
    slice that another process interrupted says nothing about the code.
    """
    repeats = max(1, int(5e-4 / _seconds(candidates[0], 3)))
    turn = repeats * sum(_seconds(candidate, 1) for candidate in candidates)
    slices = max(1, min(SLICES, int(LONG / turn)))
    times: list[list[float]] = [[float("inf")] * rounds for _ in candidates]
    for number in range(rounds * slices):
        for column, candidate in zip(times, candidates, strict=True):
            column[number // slices] = min(column[number // slices], _seconds(candidate, repeats))
    return times


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _line(size: str, job: Job, rounds: int, compiled: Kernels) -> str:
    # A copy reads and writes: half of the bytes each.
    source = np.zeros(max(1, job.bytes // 8), np.float32)
    target = np.zeros_like(source)
    plain = NumpyKernels()
    errors = job.errors([compiled, plain])
    times = measure(
        [
            lambda: job.by_kernels(compiled),
            lambda: job.by_kernels(plain),
            job.by_torch,
            lambda: np.copyto(target, source),
        ],
        rounds,
    )
    ours, numpy_, torch_, copy = times
    micro = statistics.median(ours) * 1e6
    return (
        f"| {size} | {job.name} | {micro:.1f} | {_ratio(numpy_, ours):.1f} | "
        f"{_ratio(torch_, ours):.1f} | {errors[0]:.1e} | {errors[1]:.1e} | {job.bytes / 1e6:.2f} | "
        f"{job.bytes / micro / 1e3:.1f} | {100 * _ratio(copy, ours):.0f} % |"
    )


def _on_gpu(names: Sequence[str]) -> None:
    """Print a table of the CUDA kernels, replayed on device arrays."""
    kernels = CudaKernels()
    print(on_device.HEAD)
    for name in names:
        makers = dict(SETS[name])
        if name in FILLING:
            makers["x".join(map(str, FULL))] = FILLING[name]
        for size, make in makers.items():
            for job in make():
                print(on_device.line(size, job, kernels), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels, on a GPU")
    arguments = parser.parse_args()
    for name in arguments.sets:
        if name not in SETS:
            parser.error(f"there is no set {name}: choose of {', '.join(SETS)}.")
    if arguments.cuda:
        _on_gpu(arguments.sets or list(SETS))
        return
    torch.set_num_threads(arguments.threads)
    compiled = CpuKernels(arguments.threads)
    print(
        f"{compiled.instruction_set}, {arguments.threads} thread(s) for the compiled kernels and "
        f"torch {torch.__version__}, {arguments.rounds} paired rounds\n"
    )
    print(
        "| array | operation | us | NumPy / ours | torch / ours | error | NumPy's error | MB "
        "| GB/s | of copy |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    with torch.no_grad():
        for name in arguments.sets or SETS:
            for size, make in SETS[name].items():
                for job in make():
                    print(_line(size, job, arguments.rounds, compiled), flush=True)


if __name__ == "__main__":
    main()
