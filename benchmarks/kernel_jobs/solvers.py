"""The operations of RGI and of the solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kernel_jobs.job import Array, Job
from unblemish.kernels.api import Kernels

Shape = tuple[int, int, int, int]


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


def jobs(shape: Shape) -> list[Job]:
    """Every operation on images of one shape."""
    a = Arrays(shape)
    x, g, mask, p = (torch.from_numpy(v) for v in (a.x, a.g, a.mask, a.p))
    lam = torch.from_numpy(a.item).reshape(-1, 1, 1, 1)
    rows, centre = a.p.reshape(len(a.p), -1), a.g.reshape(len(a.g), -1)
    rows_t, centre_t, radius = (torch.from_numpy(v) for v in (rows, centre, a.radius))
    out: dict[str, Any] = {"cotangent": a.cotangent, "objective": a.objective}
    image, plane = a.x.nbytes, a.mask.nbytes
    results: list[Array] = [a.cotangent, a.objective]

    def residual(operation: str) -> Callable[[Kernels], object]:
        return lambda k: getattr(k, operation)(a.x, a.g, a.item, weight=a.mask, **out)

    return [
        Job(
            "rgi_closed_form",
            lambda k: k.rgi_closed_form(a.x, a.g, a.item, a.item, mask=a.mask_gradient, **out),
            lambda: _rgi_closed_form_by_torch(x, g, lam),
            3 * image + plane,
            [*results, a.mask_gradient],
        ),
        Job(
            "rgi_gradient",
            lambda k: k.rgi_gradient(
                a.x, a.g, a.mask, a.item, a.item, mask_gradient=a.mask_gradient, **out
            ),
            lambda: _rgi_gradient_by_torch(x, g, mask, lam),
            3 * image + 2 * plane,
            [*results, a.mask_gradient],
        ),
        Job(
            "residual_l2",
            residual("residual_l2"),
            lambda: _residual_l2_by_torch(x, g, mask),
            3 * image + plane,
            results,
        ),
        Job(
            "residual_l1",
            residual("residual_l1"),
            lambda: _residual_l1_by_torch(x, g, mask),
            3 * image + plane,
            results,
        ),
        Job(
            "adam",
            lambda k: k.adam(a.p, a.g, a.m, a.v, step=2, lr=1e-3),
            _adam_by_torch(a),
            7 * image,
            [a.p, a.m, a.v],
        ),
        Job(
            "project_ball",
            lambda k: k.project_ball(rows, centre=centre, radius=a.radius),
            lambda: _project_by_torch(rows_t, centre_t, radius),
            2 * image,
            [a.p],
        ),
        Job(
            "norms",
            lambda k: k.norms(a.x, squared=a.objective, largest=a.largest),
            lambda: ((x * x).sum((1, 2, 3), dtype=torch.float64), x.abs().amax((1, 2, 3))),
            image,
            [a.objective, a.largest],
        ),
        Job(
            "all_finite",
            lambda k: k.all_finite(a.x),
            lambda: torch.isfinite(p).all().item(),
            image,
        ),
    ]
