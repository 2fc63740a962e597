"""Blobs: level sets of smoothed noise inside an ellipse."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_GRID = 64  # the noise is drawn on this grid and enlarged: cost independent of the frame


def draw_blob(height: int, width: int, area: float, rng: np.random.Generator) -> Mask:
    """Draw one connected blob without holes of about `area` px.

    The blob is the set where smoothed noise minus a quadratic bowl exceeds a level; the level is
    chosen by bisection so that the component around the centre, holes filled, comes closest to
    `area` from above (or is as large as the window allows).
    """
    ry, rx = _half_axes(height, width, area, rng)
    window = (min(height, int(4 * ry) | 1), min(width, int(4 * rx) | 1))
    relief = _relief(window, ry, rx, rng)
    blob = _level_set(relief, area)
    rows, columns = np.flatnonzero(blob.any(axis=1)), np.flatnonzero(blob.any(axis=0))
    blob = blob[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top = int(rng.integers(0, height - blob.shape[0] + 1))
    left = int(rng.integers(0, width - blob.shape[1] + 1))
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + blob.shape[0], left : left + blob.shape[1]] = blob
    return mask


def largest_component(mask: Mask) -> Mask:
    """Keep the largest 8-connected component; an empty mask stays empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def _half_axes(
    height: int, width: int, area: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Half axes of an ellipse of `area`, of random elongation, that fits the frame."""
    stretch = np.exp(rng.uniform(-0.7, 0.7))
    radius = np.sqrt(area / np.pi)
    ry = float(np.clip(radius * stretch, 1.0, 0.45 * height))
    rx = float(np.clip(area / (np.pi * ry), 1.0, 0.45 * width))
    return float(np.clip(area / (np.pi * rx), 1.0, 0.45 * height)), rx


def _relief(
    window: tuple[int, int], ry: float, rx: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    noise = rng.standard_normal((_GRID, _GRID)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(2.5, 5.0)))
    smooth = (smooth - smooth.mean()) / smooth.std()
    field = cv2.resize(smooth, window[::-1], interpolation=cv2.INTER_CUBIC)
    y = (np.arange(window[0], dtype=np.float32) - (window[0] - 1) / 2) / ry
    x = (np.arange(window[1], dtype=np.float32) - (window[1] - 1) / 2) / rx
    # The bowl dominates outside the ellipse, so that the blob stays one piece near the centre.
    return np.asarray(field - 1.5 * (y[:, None] ** 2 + x[None, :] ** 2), np.float32)


def _level_set(relief: NDArray[np.float32], area: float) -> Mask:
    low, high = float(relief.min()), float(relief.max())
    best = _component_at(relief, low)
    for _ in range(24):
        middle = 0.5 * (low + high)
        blob = _component_at(relief, middle)
        if blob.sum() >= area:
            low, best = middle, blob
        else:
            high = middle
    return best


def _component_at(relief: NDArray[np.float32], level: float) -> Mask:
    blob = largest_component(relief >= level)
    contours, _ = cv2.findContours(blob.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(blob.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 255, cv2.FILLED)
    return filled > 0
