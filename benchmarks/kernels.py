"""Time every kernel against NumPy and eager torch, and its bytes against the copy bandwidth.

    python benchmarks/kernels.py [--rounds N] [--threads N]

Each line is a paired comparison: the candidates take turns within every round, and the ratio is the
median over the rounds of the ratio within a round, so that a slow moment of the machine meets them
all. `of copy` is bytes moved (every array once: read, written, or both) per second over what
`numpy.copyto` reaches with as many bytes on one thread in the same round. Above 100 % the
kernel reuses caches or threads better than a copy does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unblemish.kernels.api import Kernels
from unblemish.kernels.cpu import CpuKernels
from unblemish.kernels.fallback import NumpyKernels

Float = NDArray[np.float32]
Shape = tuple[int, int, int, int]
SLICES = 5
SHAPES: Sequence[Shape] = [(1, 1, 128, 128), (8, 3, 128, 128), (1, 3, 1024, 1024)]


@dataclass(frozen=True)
class Job:
    """One operation on one set of arrays, and the bytes it must move."""

    name: str
    by_kernels: Callable[[Kernels], object]
    by_torch: Callable[[], object]
    bytes: int


class Arrays:
    """Arrays of one size for NumPy, and torch views of the same memory."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        self.x, self.g, self.p, self.m = (
            rng.normal(size=shape).astype(np.float32) for _ in range(4)
        )
        self.v = np.abs(self.m) + np.float32(0.1)
        self.cotangent, self.gradient = np.empty_like(self.x), np.empty_like(self.x)
        self.mask = rng.uniform(size=(shape[0], 1, *shape[2:])).astype(np.float32)
        self.mask_gradient = np.empty_like(self.mask)
        self.item = np.full(shape[0], 0.1, np.float32)
        self.radius = np.full(shape[0], 1e6, np.float32)
        self.objective, self.largest = np.empty((2, shape[0]))


def _rgi_closed_form_by_torch(x: torch.Tensor, g: torch.Tensor, lam: torch.Tensor) -> object:
    r = g - x
    r2 = (r * r).sum(1, keepdim=True)
    keep = torch.clamp(lam / (2 * r2), max=1)
    loss = torch.where(2 * r2 <= lam, r2, lam * (1 - 0.5 * keep)).sum(
        (1, 2, 3), dtype=torch.float64
    )
    return 1 - keep, 2 * keep * keep * r, loss


def _rgi_gradient_by_torch(
    x: torch.Tensor, g: torch.Tensor, mask: torch.Tensor, lam: torch.Tensor
) -> object:
    r = g - x
    keep = 1 - mask
    kept = keep * r
    r2 = (r * r).sum(1, keepdim=True)
    objective = (kept * kept).sum((1, 2, 3), dtype=torch.float64)
    sparsity = (lam * mask.abs()).sum((1, 2, 3), dtype=torch.float64)
    return 2 * keep * kept, lam * mask.sign() - 2 * keep * r2, objective + sparsity


def _residual_l2_by_torch(x: torch.Tensor, g: torch.Tensor, weight: torch.Tensor) -> object:
    r = g - x
    return 2 * weight * r, (weight * r * r).sum((1, 2, 3), dtype=torch.float64)


def _residual_l1_by_torch(x: torch.Tensor, g: torch.Tensor, weight: torch.Tensor) -> object:
    r = g - x
    return weight * r.sign(), (weight * r.abs()).sum((1, 2, 3), dtype=torch.float64)


def _project_by_torch(p: torch.Tensor, centre: torch.Tensor, radius: torch.Tensor) -> object:
    d = p - centre
    distance = d.norm(dim=1, keepdim=True)
    return centre + d * torch.clamp(radius[:, None] / distance, max=1)


def _adam_by_torch(a: Arrays) -> Callable[[], object]:
    parameter = torch.nn.Parameter(torch.from_numpy(a.p.copy()))
    parameter.grad = torch.from_numpy(a.g)
    optimiser = torch.optim.Adam([parameter], lr=1e-3, fused=True)
    return optimiser.step


def jobs(a: Arrays) -> list[Job]:
    """Return every operation on `a`."""
    x, g, mask, p = (torch.from_numpy(v) for v in (a.x, a.g, a.mask, a.p))
    lam = torch.from_numpy(a.item).reshape(-1, 1, 1, 1)
    rows, centre = a.p.reshape(len(a.p), -1), a.g.reshape(len(a.g), -1)
    rows_t, centre_t, radius = (torch.from_numpy(v) for v in (rows, centre, a.radius))
    out: dict[str, Any] = {"cotangent": a.cotangent, "objective": a.objective}
    image, plane = a.x.nbytes, a.mask.nbytes

    def residual(operation: str) -> Callable[[Kernels], object]:
        return lambda k: getattr(k, operation)(a.x, a.g, a.item, weight=a.mask, **out)

    return [
        Job(
            "rgi_closed_form",
            lambda k: k.rgi_closed_form(a.x, a.g, a.item, a.item, mask=a.mask_gradient, **out),
            lambda: _rgi_closed_form_by_torch(x, g, lam),
            3 * image + plane,
        ),
        Job(
            "rgi_gradient",
            lambda k: k.rgi_gradient(
                a.x, a.g, a.mask, a.item, a.item, mask_gradient=a.mask_gradient, **out
            ),
            lambda: _rgi_gradient_by_torch(x, g, mask, lam),
            3 * image + 2 * plane,
        ),
        Job(
            "residual_l2",
            residual("residual_l2"),
            lambda: _residual_l2_by_torch(x, g, mask),
            3 * image + plane,
        ),
        Job(
            "residual_l1",
            residual("residual_l1"),
            lambda: _residual_l1_by_torch(x, g, mask),
            3 * image + plane,
        ),
        Job(
            "adam",
            lambda k: k.adam(a.p, a.g, a.m, a.v, step=2, lr=1e-3),
            _adam_by_torch(a),
            7 * image,
        ),
        Job(
            "project_ball",
            lambda k: k.project_ball(rows, centre=centre, radius=a.radius),
            lambda: _project_by_torch(rows_t, centre_t, radius),
            2 * image,
        ),
        Job(
            "norms",
            lambda k: k.norms(a.x, squared=a.objective, largest=a.largest),
            lambda: ((x * x).sum((1, 2, 3), dtype=torch.float64), x.abs().amax((1, 2, 3))),
            image,
        ),
        Job(
            "all_finite",
            lambda k: k.all_finite(a.x),
            lambda: torch.isfinite(p).all().item(),
            image,
        ),
    ]


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(job: Job, candidates: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return seconds per call, a list of rounds for each candidate.

    In a round the candidates take turns `SLICES` times, and each keeps its fastest slice: a slice
    that another process interrupted says nothing about the code.
    """
    repeats = max(1, int(5e-4 / _seconds(candidates[0], 3)))
    times: list[list[float]] = [[float("inf")] * rounds for _ in candidates]
    for turn in range(rounds * SLICES):
        for column, candidate in zip(times, candidates, strict=True):
            column[turn // SLICES] = min(column[turn // SLICES], _seconds(candidate, repeats))
    return times


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _line(shape: Shape, job: Job, rounds: int, compiled: Kernels) -> str:
    # A copy reads and writes: half of the bytes each.
    source = np.zeros(max(1, job.bytes // 8), np.float32)
    target = np.zeros_like(source)
    times = measure(
        job,
        [
            lambda: job.by_kernels(compiled),
            lambda: job.by_kernels(NumpyKernels()),
            job.by_torch,
            lambda: np.copyto(target, source),
        ],
        rounds,
    )
    ours, numpy_, torch_, copy = times
    micro = statistics.median(ours) * 1e6
    return (
        f"| {'x'.join(map(str, shape))} | {job.name} | {micro:.1f} | {_ratio(numpy_, ours):.1f} | "
        f"{_ratio(torch_, ours):.1f} | {job.bytes / 1e6:.2f} | {job.bytes / micro / 1e3:.1f} | "
        f"{100 * _ratio(copy, ours):.0f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compiled = CpuKernels(arguments.threads)
    print(
        f"{compiled.instruction_set}, {arguments.threads} thread(s) for the compiled kernels and "
        f"torch {torch.__version__}, {arguments.rounds} paired rounds\n"
    )
    print("| array | operation | us | NumPy / ours | torch / ours | MB | GB/s | of copy |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with torch.no_grad():
        for shape in SHAPES:
            for job in jobs(Arrays(shape)):
                print(_line(shape, job, arguments.rounds, compiled), flush=True)


if __name__ == "__main__":
    main()
