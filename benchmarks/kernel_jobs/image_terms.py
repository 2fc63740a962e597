"""The terms and the update of F2PAD; torch's side is that of `f2pad_eager.py`, with autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import f2pad_eager as eager
import numpy as np
import torch
from torch import Tensor

from kernel_jobs.job import Array, Job
from unblemish.kernels.api import Kernels

SETTINGS = eager.Settings()
SHARING: dict[str, Any] = {
    "radius": SETTINGS.radius,
    "sigma_space": SETTINGS.sigma_space,
    "sigma_colour": SETTINGS.sigma_colour,
}
RANGE: dict[str, Any] = {"lower": -2.1, "upper": 2.6}


class Images:
    """One image and what the descent keeps beside it; every pixel is free."""

    def __init__(self, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        shape = (1, 3, height, width)
        self.x = rng.normal(size=shape).astype(np.float32)
        self.n = (self.x + rng.normal(size=shape) * 0.2).astype(np.float32)
        self.g = (rng.normal(size=shape) * 0.02).astype(np.float32)
        self.moments = [(rng.normal(size=shape) * 0.01).astype(np.float32) for _ in range(4)]
        np.square(self.moments[2], out=self.moments[2])
        self.free = np.ones((1, 1, height, width), np.uint8)
        self.weight = np.full(1, 0.01, np.float32)
        self.gradient, self.shared = np.zeros(shape, np.float32), np.empty(shape, np.float32)
        self.value = np.zeros(1)
        self.table = np.empty((1, (2 * SETTINGS.radius + 1) ** 2, height, width), np.float16)
        self.means = rng.normal(size=(3, 3)).astype(np.float32)
        root = rng.normal(size=(3, 3, 3)) * 0.3
        self.precisions = (root @ root.transpose(0, 2, 1) + np.eye(3)).astype(np.float32)


def _slope(loss: Callable[[Tensor], Tensor], n: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.enable_grad():
            leaf = n.detach().requires_grad_()
            value = loss(leaf)
            return value, torch.autograd.grad(value, leaf)

    return call


def _update(i: Images) -> Callable[[], object]:
    """The update of `f2pad_eager`, without the sharing."""
    x, g = torch.from_numpy(i.x), torch.from_numpy(i.g)
    state = [torch.from_numpy(i.n.copy())]
    free = torch.ones(1, 1, *i.x.shape[2:])
    adan, s = eager.Adan(x), SETTINGS
    lower, upper = (torch.tensor(RANGE[name]) for name in ("lower", "upper"))

    def call() -> object:
        n = state[0]
        clipped = g.clamp(-s.clip, s.clip) * free
        gamma = s.rate * s.step_size / (x - n).abs().clamp_min(s.floor)
        moved = n - gamma * adan.direction(clipped) * free
        state[0] = torch.maximum(torch.minimum(moved, upper), lower)
        return state[0]

    return call


def _terms(i: Images) -> list[Job]:
    x, n = torch.from_numpy(i.x), torch.from_numpy(i.n)
    means, precisions = torch.from_numpy(i.means), torch.from_numpy(i.precisions)
    out: dict[str, Any] = {"gradient": i.gradient, "value": i.value}
    epsilon, image = SETTINGS.epsilon, i.n.nbytes
    results: list[Array] = [i.gradient, i.value]
    return [
        Job(
            "total_variation",
            lambda k: k.total_variation(i.n, i.weight, **out),
            _slope(lambda v: 0.01 * eager.total_variation(v), n),
            3 * image,
            results,
        ),
        Job(
            "log_penalty",
            lambda k: k.log_penalty(i.x, i.n, i.weight, i.free, epsilon=epsilon, **out),
            _slope(lambda v: 0.01 * eager.log_penalty(x - v, epsilon), n),
            4 * image + i.free.nbytes,
            results,
        ),
        Job(
            "mixture_prior",
            lambda k: k.mixture_prior(i.n, i.means, i.precisions, i.weight, i.free, **out),
            _slope(lambda v: 0.01 * eager.prior(v, means, precisions), n),
            3 * image + i.free.nbytes,
            results,
        ),
    ]


def _shared(i: Images) -> list[Job]:
    x, g = torch.from_numpy(i.x), torch.from_numpy(i.g)
    weights = eager.sharing_weights(x, SETTINGS)
    image, radius = i.x.nbytes, SETTINGS.radius

    def from_table(k: Kernels) -> None:
        k.share_gradient(i.g, i.table, radius=radius, shared=i.shared)

    def by_unfold() -> object:
        return eager.share(g, weights, radius)

    return [
        Job(
            "sharing_weights",
            lambda k: k.sharing_weights(i.x, weights=i.table, **SHARING),
            lambda: eager.sharing_weights(x, SETTINGS),
            image + i.table.nbytes,
            [i.table],
        ),
        Job("share_gradient", from_table, by_unfold, 2 * image + i.table.nbytes, [i.shared]),
        Job(
            "share_gradient_direct",
            lambda k: k.share_gradient_direct(i.g, i.x, shared=i.shared, **SHARING),
            by_unfold,
            3 * image,
            [i.shared],
        ),
    ]


def jobs(height: int, width: int) -> list[Job]:
    """Every operation on one colour image."""
    from unblemish.kernels.fallback import NumpyKernels

    i = Images(height, width)
    NumpyKernels().sharing_weights(i.x, weights=i.table, **SHARING)
    settings: dict[str, Any] = {
        "rate": i.weight,
        "clip": SETTINGS.clip,
        "floor": SETTINGS.floor,
        **RANGE,
    }

    def adan(k: Kernels) -> None:
        first, slope, second, previous = i.moments
        k.adan(i.n, i.x, i.g, first, slope, second, previous, i.free, step=2, **settings)

    update = Job("adan", adan, _update(i), 12 * i.n.nbytes + i.free.nbytes, [i.n, *i.moments])
    return [*_terms(i), *_shared(i), update]
