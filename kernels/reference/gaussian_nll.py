"""Gaussian negative log-likelihood with learned variances, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def gaussian_nll(
    x: NDArray[Any], g: NDArray[Any], log_scale: NDArray[Any], scale: NDArray[Any]
) -> tuple[Double, Double, Double]:
    """Return cotangent, log_scale_cotangent and objective of `EnergyTerms.gaussian_nll`."""
    r, s = g.astype(np.float64) - x, log_scale.astype(np.float64)
    factor = scale.astype(np.float64).reshape(-1, 1, 1, 1)
    with np.errstate(all="ignore"):
        precision = np.exp(-2 * s)
        by_scale = factor * (1 - r**2 * precision)
        if log_scale.shape != x.shape:
            by_scale = by_scale.sum(axis=1, keepdims=True)
        objective = scale * np.sum(r**2 * precision / 2 + s, axis=(1, 2, 3))
        return factor * r * precision, by_scale, objective
