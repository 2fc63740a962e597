"""Connected defects, measured."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.inspection import Region


def measure_regions(
    mask: NDArray[np.bool_],
    score: NDArray[np.float32],
    *,
    millimetres_per_pixel: float | None = None,
    min_area: int = 0,
) -> tuple[Region, ...]:
    """Measure the 8-connected regions of a mask, largest first.

    A pixel is a unit square: a drawn rectangle of 10 x 4 pixels has area 40, length 10, width 4 and
    a diameter of sqrt(10^2 + 4^2).

    Args:
        mask, score: (H, W).
        millimetres_per_pixel: scale of the camera, or None.
        min_area: smaller regions are left out, px.
    """
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    regions = []
    for label in range(1, count):
        left, top, width, height, area = (int(v) for v in stats[label])
        if area < min_area:
            continue
        window = slice(top, top + height), slice(left, left + width)
        inside = labels[window] == label
        centre = float(centroids[label][0]), float(centroids[label][1])
        peak = float(score[window][inside].max())
        box = (left, top, width, height)
        regions.append(_region(inside, box, area, centre, peak, millimetres_per_pixel))
    return tuple(sorted(regions, key=lambda region: -region.area))


def _region(
    inside: NDArray[np.bool_],
    box: tuple[int, int, int, int],
    area: int,
    centroid: tuple[float, float],
    peak: float,
    scale: float | None,
) -> Region:
    hull = _corner_hull(inside)
    sides = cv2.minAreaRect(hull)[1]
    length, width = float(max(sides)), float(min(sides))
    diameter = _diameter(hull)
    return Region(
        area=float(area),
        length=length,
        width=width,
        diameter=diameter,
        centroid=centroid,
        box=box,
        peak=peak,
        area_mm2=None if scale is None else area * scale**2,
        length_mm=None if scale is None else length * scale,
        width_mm=None if scale is None else width * scale,
        diameter_mm=None if scale is None else diameter * scale,
    )


def _corner_hull(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Convex hull (n, 2) of the corners of the pixels: only the ends of every row can be on it."""
    rows = np.flatnonzero(inside.any(axis=1))
    first = inside[rows].argmax(axis=1)
    last = inside.shape[1] - inside[rows][:, ::-1].argmax(axis=1)
    corners = [np.stack([x, y], axis=1) for x in (first, last) for y in (rows, rows + 1)]
    points = np.concatenate(corners).astype(np.float32)
    hull: NDArray[np.float32] = np.asarray(cv2.convexHull(points), np.float32).reshape(-1, 2)
    return hull


def _diameter(hull: NDArray[np.float32]) -> float:
    """Largest distance between two corners of the hull (maximum Feret diameter)."""
    points = hull.astype(np.float64)
    largest = 0.0
    for point in points:  # one row at a time: a hull of a large region has thousands of corners
        largest = max(largest, float(np.square(points - point).sum(axis=1).max()))
    return float(np.sqrt(largest))
