"""Adam with projection on a box, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def adam(
    p: NDArray[Any],
    grad: NDArray[Any],
    m: NDArray[Any],
    v: NDArray[Any],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    lower: float,
    upper: float,
) -> tuple[Double, Double, Double]:
    """Return the new p, m and v of `Kernels.adam`.

    m' = beta1 m + (1 - beta1) grad,  v' = beta2 v + (1 - beta2) grad^2,
    p' = box( p - lr m' / (1 - beta1^t) / (sqrt(v' / (1 - beta2^t)) + eps) ).
    Source: Kingma and Ba 2015, algorithm 1; eps outside the root as in torch.optim.Adam.
    """
    gradient = grad.astype(np.float64)
    with np.errstate(all="ignore"):
        m_new = beta1 * m.astype(np.float64) + (1 - beta1) * gradient
        v_new = beta2 * v.astype(np.float64) + (1 - beta2) * gradient**2
        root = np.sqrt(v_new / (1 - beta2**step)) + eps
        p_new = np.clip(p - lr / (1 - beta1**step) * m_new / root, lower, upper)
    return p_new, m_new, v_new
