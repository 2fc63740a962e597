"""Distance of pixels to the nearest component of a mixture, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def mixture_prior(
    n: NDArray[Any],
    means: NDArray[Any],
    precisions: NDArray[Any],
    weight: NDArray[Any],
    free: NDArray[np.uint8],
) -> tuple[Double, Double]:
    """Return what `ImageTerms.mixture_prior` adds to gradient and value.

    Of the nearest component q alone, the first of several: (n - mu_q)^T P_q (n - mu_q), and
    2 P_q (n - mu_q). Source: seed 003, eq. 10.
    """
    image = n.astype(np.float64)
    gradient, value = np.zeros(image.shape), np.zeros(len(image))
    with np.errstate(all="ignore"):
        for b, y, x in np.ndindex(len(image), *image.shape[2:]):
            if free[b, 0, y, x] == 0:
                continue
            offsets = image[b, :, y, x] - means
            distances = [d @ p @ d for d, p in zip(offsets, precisions.astype(float), strict=True)]
            nearest = int(np.argmin(distances))
            value[b] += weight[b] * distances[nearest]
            gradient[b, :, y, x] = 2 * weight[b] * precisions[nearest] @ offsets[nearest]
    return gradient, value
