"""Squared Mahalanobis distances and their slopes, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def mahalanobis(
    f: NDArray[Any], mean: NDArray[Any], whitening: NDArray[Any], cells: NDArray[Any]
) -> tuple[Double, Double]:
    """Return scores (B, L) and cotangent (B, L, c) of `Kernels.mahalanobis`."""
    scores, cotangent = np.zeros(cells.shape), np.zeros(f.shape)
    w = np.zeros((f.shape[2], f.shape[2]))
    rows, columns = np.tril_indices(f.shape[2])
    for at in zip(*np.nonzero(cells >= 0), strict=True):
        place = cells[at]
        w[rows, columns] = whitening[place]
        t = w @ (f[at].astype(np.float64) - mean[place])
        scores[at] = t @ t
        cotangent[at] = 2 * (w.T @ t)
    return scores, cotangent


def mahalanobis_low_rank(
    f: NDArray[Any],
    mean: NDArray[Any],
    basis: NDArray[Any],
    inverse_variance: NDArray[Any],
    cells: NDArray[Any],
) -> tuple[Double, Double]:
    """Return scores (B, L) and cotangent (B, L, c) of `Kernels.mahalanobis_low_rank`."""
    scores, cotangent = np.zeros(cells.shape), np.zeros(f.shape)
    for at in zip(*np.nonzero(cells >= 0), strict=True):
        place = cells[at]
        b = basis[place].astype(np.float64)
        d = f[at].astype(np.float64) - mean[place]
        rest = float(inverse_variance[place]) * (d - b @ (b.T @ d))
        scores[at] = d @ rest
        cotangent[at] = 2 * rest
    return scores, cotangent
