"""Projection on l2 balls in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def project_ball(
    p: NDArray[Any], centre: NDArray[Any] | None, radius: NDArray[Any]
) -> NDArray[np.float64]:
    """Return argmin_q ||q - p|| with ||q - c|| <= radius, per row.

    Inside the ball q = p, outside q = c + radius (p - c) / ||p - c||; a row with NaN turns NaN.
    """
    c = np.zeros_like(p, dtype=np.float64) if centre is None else centre.astype(np.float64)
    d = p.astype(np.float64) - c
    with np.errstate(all="ignore"):
        distance = np.sqrt(np.sum(d * d, axis=1, keepdims=True))
        limit = radius.astype(np.float64).reshape(-1, 1)
        return np.where(distance <= limit, p.astype(np.float64), c + limit / distance * d)
