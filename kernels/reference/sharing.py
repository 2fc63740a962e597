"""Gradients shared between a pixel and its neighbours, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


def sharing_weights(
    x: NDArray[Any], *, radius: int, sigma_space: float, sigma_colour: float
) -> Double:
    """Return the weights of `ImageTerms.sharing_weights`, (B, (2 radius + 1)^2, H, W).

    Of every pixel, over its neighbours inside the image, row by row: the weight falls with the
    distance and the difference of colour, and is divided by the sum. Source: seed 003, eq. 14.
    """
    image = x.astype(np.float64)
    batch, _, height, width = image.shape
    side = 2 * radius + 1
    weights = np.zeros((batch, side, side, height, width))
    with np.errstate(all="ignore"):
        for b, y, column in np.ndindex(batch, height, width):
            rows = np.arange(max(0, y - radius), min(height, y + radius + 1))
            columns = np.arange(max(0, column - radius), min(width, column + radius + 1))
            window = image[b][:, rows[:, None], columns]
            colour = np.sum((window - image[b, :, y, column, None, None]) ** 2, axis=0)
            space = (rows[:, None] - y) ** 2 + (columns - column) ** 2
            each = np.exp(-space / sigma_space - colour / sigma_colour)
            place = np.ix_(rows - y + radius, columns - column + radius)
            weights[b, :, :, y, column][place] = each / each.sum()
    return weights.reshape(batch, side * side, height, width)


def share_gradient(gradient: NDArray[Any], weights: NDArray[Any], *, radius: int) -> Double:
    """Return the shared gradient of `ImageTerms.share_gradient`.

    Zeros around the image, then shared_p = sum over the offsets o of w_o(p) gradient(p + o).
    Source: seed 003, eq. 13.
    """
    height, width = gradient.shape[2:]
    around = [(0, 0), (0, 0), (radius, radius), (radius, radius)]
    padded = np.pad(gradient.astype(np.float64), around)
    shared = np.zeros(gradient.shape)
    side = 2 * radius + 1
    with np.errstate(all="ignore"):
        for dy, dx in np.ndindex(side, side):
            w = weights[:, dy * side + dx, None].astype(np.float64)
            shared += w * padded[:, :, dy : dy + height, dx : dx + width]
    return shared


def share_gradient_direct(
    gradient: NDArray[Any],
    x: NDArray[Any],
    *,
    radius: int,
    sigma_space: float,
    sigma_colour: float,
) -> Double:
    """Return the shared gradient with weights that are not rounded to half precision."""
    weights = sharing_weights(x, radius=radius, sigma_space=sigma_space, sigma_colour=sigma_colour)
    return share_gradient(gradient, weights, radius=radius)
