"""Pictures of a result: outlines exact to the pixel, measured labels. OpenCV and NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.images import encode_image
from unblemish.runtime.inspection import Region

Picture = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom

OUTLINE = (255, 72, 0)
PASSED = (235, 205, 60)  # marks on a part whose verdict is 'pass'
TRUTH = (0, 190, 255)
_DARK, _LIGHT = (20, 24, 27), (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MOST_LABELS = 8
_WIDEST = 4  # of a picture in a row, in heights


def to_display(frame: NDArray[Any]) -> Picture:
    """Convert a frame to (H, W, 3) uint8 RGB for looking at.

    uint16 is divided by the smallest full scale of 8, 10, 12, 14 or 16 bits that holds its largest
    value; floats are taken as [0, 1], or stretched from their minimum to their maximum beyond it.
    """
    if frame.dtype == np.bool_:
        grey = frame.astype(np.uint8) * 255
    elif frame.dtype == np.uint16:
        bits = next(b for b in (8, 10, 12, 14, 16) if int(frame.max(initial=0)) < 1 << b)
        grey = (frame.astype(np.float32) * (255.0 / ((1 << bits) - 1)) + 0.5).astype(np.uint8)
    elif np.issubdtype(frame.dtype, np.floating):
        grey = _stretch(np.nan_to_num(frame.astype(np.float32)))
    else:
        grey = np.clip(frame, 0, 255).astype(np.uint8)
    return grey.copy() if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def draw_overlay(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    regions: Sequence[Region] = (),
    *,
    truth: NDArray[np.bool_] | None = None,
    passed: bool = False,
    least_side: int = 512,
) -> Picture:
    """Draw the outline of `mask` on `frame`, and the measures of the largest regions.

    The line lies just outside the mask, so that every pixel of the defect stays visible. A frame
    whose longer side is under `least_side` is enlarged by a whole factor (nearest neighbour).

    Args:
        frame: (H, W) or (H, W, 3), any pixel type.
        mask: (H, W) bool.
        truth: (H, W) bool, outlined in blue beneath.
        passed: draw in yellow: marks that the verdict lets pass.
    Returns: (k H, k W, 3) uint8 RGB, k the factor.
    """
    factor = max(1, -(-least_side // max(frame.shape[:2])))
    thickness = min(factor, 2)
    picture = _enlarge(to_display(frame), factor)
    if truth is not None:
        picture[_outline(_enlarge(truth.astype(np.uint8), factor), thickness)] = TRUTH
    picture[_outline(_enlarge(mask.astype(np.uint8), factor), thickness)] = (
        PASSED if passed else OUTLINE
    )
    boxes = [_scaled(region.box, factor) for region in regions]
    taken: list[Box] = []
    for region, box in list(zip(regions, boxes, strict=True))[:_MOST_LABELS]:
        taken.append(_label(picture, label_of(region), box, boxes, taken))
    return picture


def heat_map(score: NDArray[Any], threshold: float | None = None) -> Picture:
    """Colour a score map from dark (0) to bright (twice the threshold, or the largest score)."""
    top = 2 * threshold if threshold else float(np.nanmax(score, initial=0.0))
    level = np.clip(np.nan_to_num(score) / top if top > 0 else np.zeros(score.shape), 0, 1)
    colours = cv2.applyColorMap((level * 255 + 0.5).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def side_by_side(panels: Sequence[tuple[str, NDArray[Any]]], *, height: int = 384) -> Picture:
    """Set pictures of any size and type in one row of equal `height`, each under its title.

    Without any title there is no room for one either.
    """
    bar, gap, columns = 26 if any(title for title, _ in panels) else 0, 8, []
    for title, panel in panels:
        shown = fit_height(to_display(panel), height)
        column = np.full(
            (height + bar, max(shown.shape[1], _text_width(title) if title else 0), 3),
            255,
            np.uint8,
        )
        column[bar:, : shown.shape[1]] = shown
        if title:
            cv2.putText(column, title, (0, 18), _FONT, 0.5, _DARK, 1, cv2.LINE_AA)
        columns += [column, np.full((height + bar, gap, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], axis=1)


def png_bytes(picture: NDArray[Any]) -> bytes:
    """Encode an RGB, grey or bool picture as PNG."""
    return encode_image(picture, ".png")


def label_of(region: Region) -> str:
    """Length and width of a region, in mm where they are known, else in native pixels."""
    if region.length_mm is not None and region.width_mm is not None:
        return f"{region.length_mm:.2f} x {region.width_mm:.2f} mm"
    return f"{region.length:.0f} x {region.width:.0f} px"


def _stretch(values: NDArray[np.float32]) -> Picture:
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.asarray((values - low) * (255.0 / (high - low)) + 0.5, dtype=np.uint8)


def _enlarge(picture: Picture, factor: int) -> Picture:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(mask: Picture, thickness: int) -> NDArray[np.bool_]:
    # Four-neighbours: a line that touches the mask from outside and covers none of it.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    grown = cv2.dilate(mask, cross, iterations=thickness)
    ring: NDArray[np.bool_] = np.logical_and(grown > 0, mask == 0)
    return ring


def _scaled(box: Box, factor: int) -> Box:
    left, top, width, height = (side * factor for side in box)
    return left, top, left + width, top + height


def _label(
    picture: Picture, text: str, box: Box, boxes: Sequence[Box], taken: Sequence[Box]
) -> Box:
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.42, 1)
    width, height = width + 8, height + 9
    places = _places(box, width, height, picture.shape[1], picture.shape[0])
    best = min(places, key=lambda p: sum(_overlap(p, other) for other in (*boxes, *taken)))
    left, top, right, bottom = best
    patch = picture[top:bottom, left:right]
    patch[:] = (patch * 0.25 + np.array(_DARK) * 0.75).astype(np.uint8)
    cv2.putText(picture, text, (left + 4, bottom - 5), _FONT, 0.42, _LIGHT, 1, cv2.LINE_AA)
    return best


def _places(box: Box, width: int, height: int, right_end: int, bottom_end: int) -> list[Box]:
    """Above, below, right and left of the box, pushed inside the picture; in order of liking."""
    left, top, right, bottom = box
    corners = (
        (left, top - height - 5),
        (left, bottom + 5),
        (right + 5, top),
        (left - width - 5, top),
    )
    inside = [
        (max(0, min(x, right_end - width)), max(0, min(y, bottom_end - height))) for x, y in corners
    ]
    return [(x, y, min(x + width, right_end), min(y + height, bottom_end)) for x, y in inside]


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def fit_height(picture: Picture, height: int) -> Picture:
    """Resample a picture to `height`, its aspect kept; white fills up what a long strip leaves.

    The width is at most `_WIDEST` heights: a line camera's frame of one row would fill the memory.
    """
    rows, columns = picture.shape[:2]
    factor = min(height / rows, _WIDEST * height / columns)
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    fitted = np.asarray(cv2.resize(picture, size, interpolation=way), dtype=np.uint8)
    above = (height - size[1]) // 2
    rims = ((above, height - size[1] - above), (0, 0), (0, 0))
    return np.pad(fitted, rims, constant_values=255)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, 0.5, 1)[0][0]) + 2
