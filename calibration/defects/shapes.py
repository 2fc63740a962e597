"""The four families of defect masks of seed 000, appendix F, drawn by our own generators.

Every mask is boolean, without antialiasing. Lengths are shares of the frame's shorter side and
areas are shares of the frame, so a defect looks the same at every resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.defects.blobs import draw_blob, largest_component
from unblemish.errors import ConfigError

Shape = Literal["crack", "scratch", "irregular", "mixed_large"]
Mask = NDArray[np.bool_]

SHAPES: tuple[Shape, ...] = get_args(Shape)
SMALLEST_SIDE = 16  # below, a "thin curve" and a "blob" are the same few pixels
LARGE_AREA = 400 / 128**2  # seed 000, appendix F: more than 400 px at 128 x 128
_ATTEMPTS = 50


def draw_shape(shape: Shape, height: int, width: int, rng: np.random.Generator) -> Mask:
    """Draw one random defect mask.

    Args:
        shape: 'crack' (branching random walk of varying width), 'scratch' (thin smooth curve),
            'irregular' (blob of 0.15 to 2 % of the frame) or 'mixed_large' (a blob and up to two
            other defects, together more than 400 / 128^2 of the frame).
        height, width: size of the frame, px, at least 16 each.
    Returns: mask, (height, width) bool; connected except for 'mixed_large'; never empty.
    Raises: ConfigError where the shape is unknown or the frame too small.
    """
    if shape not in _DRAW:
        raise ConfigError(f"unknown defect shape '{shape}'; choose one of {', '.join(SHAPES)}.")
    if min(height, width) < SMALLEST_SIDE:
        raise ConfigError(
            f"a frame of {height} x {width} px is too small for synthetic defects; "
            f"at least {SMALLEST_SIDE} x {SMALLEST_SIDE} px are needed."
        )
    mask = _DRAW[shape](height, width, rng)
    for _ in range(_ATTEMPTS):
        if mask.sum() >= _least_area(shape, height, width):
            break
        mask |= _DRAW[shape](height, width, rng)
        mask = mask if shape == "mixed_large" else largest_component(mask)
    return mask


def _least_area(shape: Shape, height: int, width: int) -> float:
    """Smallest area accepted, px: a line of a tenth of the side, or the share of the frame."""
    if shape == "mixed_large":
        return LARGE_AREA * height * width + 1
    return max(4.0, 0.1 * min(height, width))


def _scratch(height: int, width: int, rng: np.random.Generator) -> Mask:
    """A curve whose heading turns at a slowly changing rate; width up to 1.2 % of the side."""
    side = min(height, width)
    length = rng.uniform(0.25, 0.9) * side
    thickness = _whole(rng.uniform(1.0, max(1.0, min(0.012 * side, 0.07 * length))))
    steps = max(8, int(length / 2))
    turn = np.linspace(rng.normal(0, 1.2), rng.normal(0, 1.2), steps) / steps
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turn)
    points = np.cumsum(
        length / steps * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0
    )
    canvas = np.zeros((height, width), np.uint8)
    _polyline(canvas, _placed(points, height, width, rng), np.full(steps, thickness))
    return largest_component(canvas > 0)


def _crack(height: int, width: int, rng: np.random.Generator) -> Mask:
    """A jagged random walk whose width wanders, with one to four thinner branches."""
    side = min(height, width)
    widest = max(1.6, 0.025 * side)
    trunk = _walk(rng.uniform(0.25, 0.7) * side, rng.uniform(0, 2 * np.pi), side, rng)
    trunk = _placed(trunk, height, width, rng)
    canvas = np.zeros((height, width), np.uint8)
    _polyline(canvas, trunk, _wandering_width(len(trunk), widest, rng))
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(1, len(trunk)))
        along = trunk[at] - trunk[at - 1]
        angle = np.arctan2(along[1], along[0]) + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
        branch = trunk[at] + _walk(rng.uniform(0.06, 0.25) * side, angle, side, rng)
        _polyline(canvas, branch, _wandering_width(len(branch), 0.6 * widest, rng))
    return largest_component(canvas > 0)


def _walk(
    length: float, heading: float, side: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points of a jagged walk from the origin: the heading jumps and returns to its drift."""
    step = max(1.5, 0.012 * side)
    count = max(3, round(length / step))
    drift = heading + np.cumsum(rng.normal(0, 0.12, count))
    angles = drift + rng.normal(0, 0.55, count)
    steps = (
        step
        * rng.uniform(0.5, 1.5, count)[:, None]
        * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    )
    return np.vstack([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _wandering_width(count: int, widest: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Integer widths from 1 to `widest` that follow a smooth random course and taper off."""
    knots = rng.uniform(0.15, 1.0, max(2, count // 6))
    course = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(knots)), knots)
    taper = np.minimum(1.0, 2.5 * (1 - np.linspace(0, 1, count)))
    return np.maximum(1, np.rint(widest * course * taper)).astype(np.int64)


def _irregular(height: int, width: int, rng: np.random.Generator) -> Mask:
    area = np.exp(rng.uniform(np.log(0.0015), np.log(0.02))) * height * width
    return draw_blob(height, width, max(area, 12.0), rng)


def _mixed_large(height: int, width: int, rng: np.random.Generator) -> Mask:
    share = np.exp(rng.uniform(np.log(1.1 * LARGE_AREA), np.log(0.12)))
    mask = draw_blob(height, width, share * height * width, rng)
    for _ in range(rng.integers(0, 3)):
        other: Shape = ("crack", "scratch", "irregular")[rng.integers(3)]
        mask = mask | _DRAW[other](height, width, rng)
    return mask


def _placed(
    points: NDArray[np.float64], height: int, width: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Move a curve (x, y) so that it lies inside the frame; where it cannot, its middle does."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([width - 3, height - 3]) - (high - low)
    offset = 1 + np.where(room > 0, rng.uniform(0, 1, 2) * room, room / 2)
    return np.asarray(points - low + offset)


def _polyline(
    canvas: NDArray[np.uint8], points: NDArray[np.float64], widths: NDArray[np.int64]
) -> None:
    corners = np.rint(points).astype(int)
    for start, end, thickness in zip(corners[:-1], corners[1:], widths[1:], strict=True):
        cv2.line(
            canvas, tuple(map(int, start)), tuple(map(int, end)), 255, int(thickness), cv2.LINE_8
        )


def _whole(value: float) -> int:
    return max(1, round(value))


_DRAW: dict[Shape, Callable[[int, int, np.random.Generator], Mask]] = {
    "crack": _crack,
    "scratch": _scratch,
    "irregular": _irregular,
    "mixed_large": _mixed_large,
}
