"""The RGI objective minimised over the mask, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def rgi_closed_form(
    x: NDArray[Any], g: NDArray[Any], lam: NDArray[Any], scale: NDArray[Any], *, shared: bool
) -> tuple[Double, Double, Double]:
    """Return mask, cotangent and objective of `Kernels.rgi_closed_form`.

    Args:
        shared: one mask for all channels, (B, 1, H, W); otherwise (B, C, H, W).
    Returns: float64; NaN objective where a residual of the item is not finite.
    Source: seed 000, eq. 3 and section 3.3.
    """
    r = g.astype(np.float64) - x
    lam4, scale4 = (v.astype(np.float64).reshape(-1, 1, 1, 1) for v in (lam, scale))
    with np.errstate(all="ignore"):
        r2 = np.sum(r * r, axis=1, keepdims=True) if shared else r * r
        inside = 2 * r2 <= lam4
        mask = np.where(inside, 0.0, 1 - lam4 / (2 * r2))
        loss = np.where(inside, r2, lam4 - lam4**2 / (4 * r2))
        cotangent = scale4 * 2 * (1 - mask) ** 2 * r
        objective = np.sum(loss, axis=(1, 2, 3)) + np.sum(0.0 * r, axis=(1, 2, 3))
    return mask, cotangent, objective * scale
