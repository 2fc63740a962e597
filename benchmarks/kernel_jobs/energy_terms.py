"""The terms and the step of energy projection; torch's side by convolutions and autograd."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernel_jobs.job import Job
from unblemish.kernels.api import Kernels

Shape = tuple[int, int, int, int]


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


def jobs(shape: Shape) -> list[Job]:
    """Every operation on images of one shape."""
    return _dssim_jobs(Images(shape))
