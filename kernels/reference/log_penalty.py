"""The LOG penalty of a difference and its derivative, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def log_penalty(
    x: NDArray[Any],
    n: NDArray[Any],
    weight: NDArray[Any],
    free: NDArray[np.uint8],
    *,
    epsilon: float,
) -> tuple[Double, Double]:
    """Return what `ImageTerms.log_penalty` adds to gradient and value.

    log(sqrt(s^2 + epsilon) + s) = log(epsilon) / 2 + asinh(s / sqrt(epsilon)) with s = ||x - n||;
    its derivative by n is (n - x) / s / sqrt(s^2 + epsilon). Source: seed 003, eq. 8.
    """
    a = n.astype(np.float64) - x
    with np.errstate(all="ignore"):
        s = np.sqrt(np.sum(a * a, axis=1, keepdims=True))
        each = np.log(epsilon) / 2 + np.arcsinh(s / np.sqrt(epsilon))
        slope = np.where(s == 0, 0, a / s / np.hypot(s, np.sqrt(epsilon)))
    counted = free != 0
    gradient = weight[:, None, None, None] * np.where(counted, slope, 0)
    return gradient, weight * np.sum(np.where(counted, each, 0), axis=(1, 2, 3))
