"""The terms and the step of energy projection; torch's side by convolutions and autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernel_jobs.job import Job
from unblemish.kernels.api import Kernels

Shape = tuple[int, int, int, int]
SUMS = ("l1", "squared_change", "largest_change")


class Images:
    """Images in [0, 1], their reconstructions, and what the search keeps beside them."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.random(shape, dtype=np.float32)
        self.g = (self.x + 0.1 * rng.normal(size=shape)).astype(np.float32)
        self.direct, self.cotangent = np.empty((2, *shape), np.float32)
        self.map = np.empty((shape[0], 1, *shape[2:]), np.float32)
        self.one = np.ones(shape[0], np.float32)
        self.objective = np.empty(shape[0])


def _ssim(x: Tensor, g: Tensor, window: Tensor) -> Tensor:
    """As it is usually written: five separable convolutions, zeros beyond the border."""
    channels, radius = x.shape[1], len(window) // 2
    rows = window.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)

    def mean(v: Tensor) -> Tensor:
        v = torch.nn.functional.conv2d(v, rows, padding=(radius, 0), groups=channels)
        return torch.nn.functional.conv2d(
            v, rows.transpose(2, 3), padding=(0, radius), groups=channels
        )

    mu_x, mu_g = mean(x), mean(g)
    var_x, var_g = mean(x * x) - mu_x.square(), mean(g * g) - mu_g.square()
    cov = mean(x * g) - mu_x * mu_g
    return ((2 * mu_x * mu_g + 1e-4) * (2 * cov + 9e-4)) / (
        (mu_x.square() + mu_g.square() + 1e-4) * (var_x + var_g + 9e-4)
    )


def _dssim_jobs(i: Images) -> list[Job]:
    x, g = torch.from_numpy(i.x), torch.from_numpy(i.g)
    offsets = torch.arange(11, dtype=torch.float32) - 5
    window = torch.exp(-offsets.square() / 4.5)
    window = window / window.sum()

    def ours(k: Kernels) -> None:
        k.dssim(
            i.x,
            i.g,
            i.one,
            data_range=1.0,
            dissimilarity=i.map,
            direct=i.direct,
            cotangent=i.cotangent,
            objective=i.objective,
        )

    def map_alone(k: Kernels) -> None:
        k.dssim(
            i.x,
            i.g,
            i.one,
            data_range=1.0,
            dissimilarity=i.map,
            direct=None,
            cotangent=None,
            objective=i.objective,
        )

    def by_torch() -> object:
        with torch.enable_grad():
            leaves = [v.detach().requires_grad_() for v in (x, g)]
            each = (1 - _ssim(*leaves, window)).mean(1, keepdim=True) / 2
            return each, torch.autograd.grad(each.sum(), leaves)

    def map_by_torch() -> object:
        return (1 - _ssim(x, g, window)).mean(1, keepdim=True) / 2

    image, plane = i.x.nbytes, i.map.nbytes
    both = [i.map, i.objective]
    whole = [*both, i.direct, i.cotangent]
    return [
        Job("dssim", ours, by_torch, 4 * image + plane, whole),
        Job("dssim, map", map_alone, map_by_torch, 2 * image + plane, both),
    ]


class Search:
    """One iterate, where it started, its reconstruction, slopes and moments."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        self.start = rng.random(shape, dtype=np.float32)
        normal = [rng.normal(size=shape).astype(np.float32) * np.float32(0.1) for _ in range(5)]
        self.x, self.restored = self.start + normal[0], self.start + normal[1]
        self.pulled, self.direct, self.first = normal[2:]
        self.second = np.square(self.first) + np.float32(0.01)
        self.lam = np.full(shape[0], 0.05, np.float32)
        self.rate = np.full(shape[0], 1e-3, np.float32)
        self.sums = {name: np.empty(shape[0]) for name in SUMS}


def _step_by_torch(i: Search, adam: bool) -> Callable[[], object]:
    """Eq. 8 and its sums, in place; with Adam by torch's fused one."""
    names = ("start", "restored", "pulled", "direct", "x")
    start, restored, pulled, direct, x = (torch.from_numpy(getattr(i, name)) for name in names)
    parameter = torch.nn.Parameter(x.clone())
    optimiser = torch.optim.Adam([parameter], lr=1e-3, fused=True)

    def call() -> object:
        here = parameter.detach()
        away = here - start
        g = (pulled - direct + 0.05 * away.sign()) * (here - restored).square()
        before = here.clone()
        if adam:
            parameter.grad = g
            optimiser.step()
        else:
            here -= 1e-3 * g
        here.clamp_(0, 1)
        change = (here - before).flatten(1)
        l1 = 0.05 * away.abs().sum((1, 2, 3), dtype=torch.float64)
        return l1, change.square().sum(1, dtype=torch.float64), change.abs().amax(1)

    return call


def _step_jobs(i: Search) -> list[Job]:
    results = [i.x, *i.sums.values()]
    image = i.x.nbytes

    def plain(k: Kernels) -> None:
        k.energy_step(
            i.x, i.start, i.pulled, i.lam, i.rate, direct=i.direct, direct_factor=-1.0, mask=None,
            restored=i.restored, first=None, second=None, lower=0.0, upper=1.0, **i.sums,
        )  # fmt: skip

    def adam(k: Kernels) -> None:
        k.energy_step(
            i.x, i.start, i.pulled, i.lam, i.rate, direct=i.direct, direct_factor=-1.0, mask=None,
            restored=i.restored, first=i.first, second=i.second, step=2, lower=0.0, upper=1.0,
            **i.sums,
        )  # fmt: skip

    moments = [i.first, i.second]
    return [
        Job("energy_step", plain, _step_by_torch(i, False), 6 * image, results),
        Job("energy_step, Adam", adam, _step_by_torch(i, True), 10 * image, results + moments),
    ]


def _likelihood_job(i: Images) -> Job:
    log_scale = np.full(i.map.shape, -2, np.float32)
    by_scale = np.empty_like(log_scale)
    x, g, s = (torch.from_numpy(v) for v in (i.x, i.g, log_scale))

    def ours(k: Kernels) -> None:
        k.gaussian_nll(
            i.x, i.g, log_scale, i.one, cotangent=i.cotangent, log_scale_cotangent=by_scale,
            objective=i.objective,
        )  # fmt: skip

    def by_torch() -> object:
        with torch.enable_grad():
            leaves = [v.detach().requires_grad_() for v in (g, s)]
            each = (leaves[0] - x).square() * (-2 * leaves[1]).exp() / 2 + leaves[1]
            return each.detach().sum((1, 2, 3)), torch.autograd.grad(each.sum(), leaves)

    moved = 3 * i.x.nbytes + 2 * log_scale.nbytes
    return Job("gaussian_nll", ours, by_torch, moved, [i.cotangent, by_scale, i.objective])


def jobs(shape: Shape) -> list[Job]:
    """Every operation on images of one shape."""
    images = Images(shape)
    return [*_dssim_jobs(images), _likelihood_job(images), *_step_jobs(Search(shape))]
