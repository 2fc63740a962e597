"""Colour-coupled total variation and its derivative, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def total_variation(n: NDArray[Any], weight: NDArray[Any]) -> tuple[Double, Double]:
    """Return what `ImageTerms.total_variation` adds to gradient and value.

    Every pair of neighbours (p, q) has the norm v = ||n_q - n_p|| and pulls with (n_q - n_p) / v on
    q and against it on p; a pair of equals does not pull. Source: seed 003, eq. 11.
    """
    image = n.astype(np.float64)
    gradient, value = np.zeros(image.shape), np.zeros(len(image))
    batch, _, height, width = image.shape
    with np.errstate(all="ignore"):
        for b, y, x in np.ndindex(batch, height, width):
            for down, right in ((1, 0), (0, 1)):
                if y + down == height or x + right == width:
                    continue
                d = image[b, :, y + down, x + right] - image[b, :, y, x]
                norm = np.sqrt(np.sum(d * d))
                value[b] += weight[b] * norm
                pull = np.zeros_like(d) if norm == 0 else weight[b] * d / norm
                gradient[b, :, y + down, x + right] += pull
                gradient[b, :, y, x] -= pull
    return gradient, value
