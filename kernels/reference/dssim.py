"""Structural dissimilarity with map and gradients, in float64, in the words of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def dssim(
    x: NDArray[Any],
    g: NDArray[Any],
    scale: NDArray[Any],
    *,
    data_range: float,
    window: int,
    sigma: float,
) -> tuple[Double, Double, Double, Double]:
    """Return dissimilarity, direct, cotangent and objective of `EnergyTerms.dssim`.

    The window is written as one matrix for each axis, F image = R image K^T, and taken back by its
    transpose. With A1 = 2 mu_x mu_g + C1, A2 = 2 cov + C2, B1 = mu_x^2 + mu_g^2 + C1 and
    B2 = var_x + var_g + C2, SSIM = S = A1 A2 / (B1 B2), and by the five windowed means

        dS/dF(xg) = 2 A1 / (B1 B2),   dS/dF(xx) = dS/dF(gg) = -S / B2,
        dS/dF(x)  = 2 mu_g A2 / (B1 B2) - 2 mu_x S / B1 + 2 mu_x S / B2 - mu_g dS/dF(xg)
    """
    a, b = x.astype(np.float64), g.astype(np.float64)
    rows, columns = (_window_matrix(n, window, sigma) for n in x.shape[2:])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    with np.errstate(all="ignore"):
        mu_x, mu_g, xx, gg, xg = (rows @ image @ columns.T for image in (a, b, a * a, b * b, a * b))
        a1, a2 = 2 * mu_x * mu_g + c1, 2 * (xg - mu_x * mu_g) + c2
        b1, b2 = mu_x**2 + mu_g**2 + c1, xx - mu_x**2 + gg - mu_g**2 + c2
        ssim = a1 * a2 / (b1 * b2)
        by_product, by_square = 2 * a1 / (b1 * b2), -ssim / b2
        by_x, by_g = (
            2 * other * a2 / (b1 * b2) - 2 * own * ssim * (1 / b1 - 1 / b2) - other * by_product
            for own, other in ((mu_x, mu_g), (mu_g, mu_x))
        )
        to_x, to_g, to_square, to_product = (
            rows.T @ slope @ columns for slope in (by_x, by_g, by_square, by_product)
        )
        factor = -scale.astype(np.float64).reshape(-1, 1, 1, 1) / (2 * x.shape[1])
        direct = factor * (to_x + 2 * a * to_square + b * to_product)
        cotangent = factor * (to_g + 2 * b * to_square + a * to_product)
        dissimilarity = np.mean((1 - ssim) / 2, axis=1, keepdims=True)
        objective = scale * np.sum(dissimilarity, axis=(1, 2, 3))
    return dissimilarity, direct, cotangent, objective


def _window_matrix(length: int, window: int, sigma: float) -> Double:
    """Row i: the weights of a normalised Gaussian around i, folded back at both borders."""
    offsets = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((length, length))
    for i in range(length):
        for offset, weight in zip(offsets, weights, strict=True):
            turn = (i + int(offset)) % (2 * length)
            matrix[i, turn if turn < length else 2 * length - 1 - turn] += weight
    return matrix
