"""The RGI objective and its derivatives with a free mask, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def rgi_gradient(
    x: NDArray[Any], g: NDArray[Any], mask: NDArray[Any], lam: NDArray[Any], scale: NDArray[Any]
) -> tuple[Double, Double, Double]:
    """Return cotangent, mask gradient and objective of `Kernels.rgi_gradient`.

    Source: seed 000, eq. 3.
    """
    r = g.astype(np.float64) - x
    m = mask.astype(np.float64)
    lam4, scale4 = (v.astype(np.float64).reshape(-1, 1, 1, 1) for v in (lam, scale))
    with np.errstate(all="ignore"):
        r2 = r * r if mask.shape == x.shape else np.sum(r * r, axis=1, keepdims=True)
        cotangent = scale4 * 2 * (1 - m) ** 2 * r
        mask_gradient = scale4 * (lam4 * np.sign(m) - 2 * (1 - m) * r2)
        fit = np.sum(((1 - m) * r) ** 2, axis=(1, 2, 3))
        sparsity = np.sum(lam4 * np.abs(m), axis=(1, 2, 3))
        objective = scale * (fit + sparsity)
    return cotangent, mask_gradient, objective
