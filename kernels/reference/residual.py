"""Weighted l2 and l1 residuals in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def residual_l2(
    x: NDArray[Any], g: NDArray[Any], scale: NDArray[Any], weight: NDArray[Any] | None = None
) -> tuple[Double, Double]:
    """Return cotangent and objective of `Kernels.residual_l2`. Source: seed 000, eq. 1."""
    r = g.astype(np.float64) - x
    w = np.float64(1.0) if weight is None else weight.astype(np.float64)
    with np.errstate(all="ignore"):
        cotangent = scale.astype(np.float64).reshape(-1, 1, 1, 1) * 2 * w * r
        objective = scale * np.sum(w * r * r, axis=(1, 2, 3))
    return cotangent, objective


def residual_l1(
    x: NDArray[Any], g: NDArray[Any], scale: NDArray[Any], weight: NDArray[Any] | None = None
) -> tuple[Double, Double]:
    """Return cotangent and objective of `Kernels.residual_l1`. Source: seed 000, eq. 1."""
    r = g.astype(np.float64) - x
    w = np.float64(1.0) if weight is None else weight.astype(np.float64)
    with np.errstate(all="ignore"):
        cotangent = scale.astype(np.float64).reshape(-1, 1, 1, 1) * w * np.sign(r)
        objective = scale * np.sum(w * np.abs(r), axis=(1, 2, 3))
    return cotangent, objective
