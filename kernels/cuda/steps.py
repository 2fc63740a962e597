"""Constants of one step that the host makes for the kernels; see adam.hpp, adan.hpp, dssim.hpp."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

_LARGEST = float(np.finfo(np.float32).max)


def adam_step(
    step: int, lr: float, beta1: float, beta2: float, eps: float, lower: float, upper: float
) -> tuple[float, ...]:
    """The fields of `AdamStep` for step >= 1."""
    return (
        beta2, 1.0 - beta1, 1.0 - beta2, lr / (1.0 - beta1**step),
        1.0 / math.sqrt(1.0 - beta2**step), eps, lower, upper,
    )  # fmt: skip


def adam_steps(
    count: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    *,
    lower: float = -math.inf,
    upper: float = math.inf,
) -> NDArray[np.float32]:
    """The fields of `AdamStep` for steps 1 to `count`, (count, 8)."""
    box = (lower, upper)
    table = [adam_step(t, lr, beta1, beta2, 1e-8, *box) for t in range(1, count + 1)]
    return np.array(table, np.float32)


def adan_step(
    step: int,
    clip: float,
    lower: float,
    upper: float,
    floor: float,
    betas: tuple[float, float, float],
    eps: float,
) -> tuple[float, ...]:
    """The fields of `AdanStep` for step >= 1."""
    one, two, three = betas
    return (
        1.0 - one, two, 1.0 - two, 1.0 - three, 1.0 / (1.0 - one**step), two / (1.0 - two**step),
        1.0 / math.sqrt(1.0 - three**step), eps, clip, lower, upper, floor, float(step > 1),
    )  # fmt: skip


def adan_steps(
    count: int,
    *,
    clip: float,
    lower: float,
    upper: float,
    floor: float,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
) -> NDArray[np.float32]:
    """The fields of `AdanStep` for steps 1 to `count`, (count, 13)."""
    box = (clip, lower, upper, floor)
    return np.array([adan_step(t, *box, betas, 1e-8) for t in range(1, count + 1)], np.float32)


def dssim_constants(data_range: float) -> tuple[float, float, float]:
    """The fields of `DssimConstants`."""
    return data_range, 1e-4 * data_range * data_range, 9e-4 * data_range * data_range


@functools.lru_cache(maxsize=16)
def gaussian_window(side: int, sigma: float) -> NDArray[np.float32]:
    """A Gaussian over `side` pixels of unit sum."""
    offsets = np.arange(side) - side // 2
    weights = np.exp(-0.5 * np.square(offsets / sigma))
    return np.asarray(weights / weights.sum(), np.float32)


def inverse(sigma: float) -> float:
    """1 / sigma as far as a float32 goes."""
    return min(1.0 / sigma, _LARGEST)
