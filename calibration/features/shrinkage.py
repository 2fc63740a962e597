"""Covariances that can be inverted from few images: shrinkage and its closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def ledoit_wolf(covariance: Double, fourth: Double, count: int) -> Double:
    """Share of the scaled identity that minimises the expected squared Frobenius error.

    S the covariance (divided by the count), mu = tr S / c, for every location:
    b = (mean ||x||^4 - ||S||_F^2) / count, d = ||S - mu I||_F^2, share = min(b, d) / d.

    Args:
        covariance: (n, c, c). fourth: (n,) mean of ||f - mean||^4. count: images.
    Returns: (n,) in [0, 1]; 1 where all variances are equal or zero.
    Source: Ledoit and Wolf, 'A well-conditioned estimator for large-dimensional covariance
        matrices', 2004, lemma 3.2 to 3.4, with the estimated mean.
    """
    channels = covariance.shape[1]
    norm = np.einsum("lij,lij->l", covariance, covariance)
    mu = np.einsum("lii->l", covariance) / channels
    distance = norm - channels * mu**2
    error = np.maximum((fourth - norm) / count, 0.0)
    # Below rounding error of the difference there is nothing to tell from the identity.
    known = distance > 1e-12 * norm
    share: Double = np.where(
        known, np.minimum(error, distance) / np.where(known, distance, 1.0), 1.0
    )
    return share


def invert_lower(lower: Double) -> Double:
    """Invert lower triangular matrices (n, c, c) by halves.

    The inverse of ((A, 0), (B, D)) is ((A', 0), (-D' B A', D')), A' and D' the inverses.
    """
    size = lower.shape[1]
    if size <= 16:
        inverse: Double = np.tril(np.linalg.inv(lower))
        return inverse
    half = size // 2
    out = np.zeros_like(lower)
    out[:, :half, :half] = a = invert_lower(np.ascontiguousarray(lower[:, :half, :half]))
    out[:, half:, half:] = d = invert_lower(np.ascontiguousarray(lower[:, half:, half:]))
    out[:, half:, :half] = -(d @ lower[:, half:, :half] @ a)
    return out


def pack_lower(matrices: Double) -> NDArray[np.float32]:
    """Rows of the lower triangles one after another: (n, c, c) -> (n, c (c + 1) / 2) float32."""
    rows, columns = np.tril_indices(matrices.shape[1])
    packed: NDArray[np.float32] = matrices[:, rows, columns].astype(np.float32)
    return packed
