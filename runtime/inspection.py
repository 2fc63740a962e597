"""What an inspection returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class Status(str, Enum):
    """How the search ended. Failure is data: inspection of a valid frame does not raise."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    DEADLINE = "deadline"
    NON_FINITE = "non_finite"
    PLAIN = "plain"  # refine="none": no search was asked for


@dataclass(frozen=True)
class Region:
    """One connected defect, measured in native pixels (and mm where the bundle knows the scale).

    `box` is (left, top, width, height); `length` and `width` are the sides of the smallest
    enclosing rectangle of any direction; `diameter` is the largest distance between two points.
    """

    area: float
    length: float
    width: float
    diameter: float
    centroid: tuple[float, float]  # x, y
    box: tuple[int, int, int, int]
    peak: float  # largest score inside
    area_mm2: float | None = None
    length_mm: float | None = None
    width_mm: float | None = None
    diameter_mm: float | None = None


@dataclass(frozen=True)
class Inspection:
    """The result for one frame; every array is a copy that the caller owns.

    Mask and verdict are decided apart: the mask by the pixel threshold of the best outlines, the
    verdict by the image threshold of the stated false-reject rate. So a part that passes may show
    marks, and the overlay draws those in yellow.

    Args:
        mask: defects, (H, W) bool, native geometry.
        score: anomaly score, (H, W) float32, native geometry, unit: model intensity.
        restored: nearest normal image, (H, W) or (H, W, 3), dtype and range of the frame.
        regions: measured defects, largest first.
        verdict: 'pass' or 'fail'.
        image_score: the number compared with the image threshold.
        status: how the search ended; `steps` how many iterations it took.
        timings: stage -> milliseconds.
        latent: where the search ended, (tiles, n) float32; a start for the next frame.
        kept_plain: parts that kept the detector's own outline, their refinement being worse by
            rules that need no truth.
    """

    mask: NDArray[np.bool_]
    score: NDArray[np.float32]
    restored: NDArray[Any]
    regions: tuple[Region, ...]
    verdict: Literal["pass", "fail"]
    image_score: float
    status: Status
    steps: int
    objective: float
    timings: dict[str, float] = field(default_factory=dict)
    trace: tuple[float, ...] = ()
    latent: NDArray[np.float32] | None = None
    kept_plain: int = 0
