"""Adan with clipping, a step size per component and projection on a box, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]
Moments = tuple[Double, Double, Double, Double]


def adan(
    n: NDArray[Any],
    x: NDArray[Any],
    g: NDArray[Any],
    moments: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    free: NDArray[np.uint8],
    *,
    step: int,
    rate: NDArray[Any],
    clip: float,
    lower: float,
    upper: float,
    floor: float,
    betas: tuple[float, float, float],
    eps: float,
) -> tuple[Double, Moments]:
    """Return the new n and the new (first, slope, second, previous) of `ImageTerms.adan`.

    Source: seed 003, eq. 15; Xie et al., 'Adan', 2024, algorithm 1, with moments that are means of
    the past (beta = 1 minus theirs) and divided by 1 - beta^t, as their code does.
    """
    first, slope, second, previous = (moment.astype(np.float64) for moment in moments)
    beta1, beta2, beta3 = betas
    with np.errstate(all="ignore"):
        clipped = np.clip(g.astype(np.float64), -clip, clip)
        d = np.zeros_like(clipped) if step == 1 else clipped - previous
        first = beta1 * first + (1 - beta1) * clipped
        slope = beta2 * slope + (1 - beta2) * d
        second = beta3 * second + (1 - beta3) * (clipped + beta2 * d) ** 2
        ahead = first / (1 - beta1**step) + beta2 * slope / (1 - beta2**step)
        direction = ahead / (np.sqrt(second / (1 - beta3**step)) + eps)
        size = rate[:, None, None, None] / np.maximum(np.abs(n.astype(np.float64) - x), floor)
        moved = np.clip(n - size * direction, lower, upper)
    return np.where(free != 0, moved, n), (first, slope, second, clipped)
