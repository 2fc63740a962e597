"""Reductions in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def norms(x: NDArray[Any]) -> tuple[Double, Double]:
    """Return sum of squares and largest magnitude per item; NaN where an element is NaN."""
    rows = x.reshape(x.shape[0], -1).astype(np.float64)
    return np.sum(rows * rows, axis=1), np.max(np.abs(rows), axis=1)


def all_finite(x: NDArray[Any]) -> bool:
    """Whether every element is finite."""
    return bool(np.isfinite(x).all())
