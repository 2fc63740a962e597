"""A close look at the defects of a frame: what an outline is worth shows only when enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.report.overlay import Box, Picture, draw_overlay, to_display
from unblemish.runtime.inspection import Region

_LEAST_SIDE = 48  # of the part that is shown, native pixels
_MARGIN = 0.25  # around the defects, share of their extent


def closeup_window(shape: tuple[int, ...], regions: Sequence[Region]) -> Box | None:
    """The square (left, top, right, bottom) around all regions, inside a frame of `shape`.

    None where there is no region, or where they fill so much of the frame that nothing is gained.
    """
    if not regions:
        return None
    boxes = np.array([region.box for region in regions])
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    side = int(max((high - low).max() * (1 + 2 * _MARGIN), _LEAST_SIDE))
    if side > 0.7 * min(shape[:2]):
        return None
    limit = np.array([shape[1] - side, shape[0] - side])
    left, top = (int(v) for v in np.clip(np.round((low + high - side) / 2), 0, limit))
    return left, top, left + side, top + side


def draw_closeup(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    regions: Sequence[Region],
    window: Box,
    *,
    truth: NDArray[np.bool_] | None = None,
    passed: bool = False,
    least_side: int = 320,
) -> Picture:
    """Draw the overlay of the part of a frame inside `window`. Arguments as in `draw_overlay`."""
    left, top, right, bottom = window
    part = (slice(top, bottom), slice(left, right))
    moved = [
        replace(region, box=(region.box[0] - left, region.box[1] - top, *region.box[2:]))
        for region in regions
    ]
    cut = None if truth is None else truth[part]
    return draw_overlay(
        frame[part], mask[part], moved, truth=cut, passed=passed, least_side=least_side
    )


def mark_window(frame: NDArray[Any], window: Box) -> Picture:
    """The frame with a white line around `window`, black on its outer side."""
    picture = to_display(frame)
    left, top, right, bottom = window
    thin = max(1, round(max(picture.shape[:2]) / 512))
    for colour, off in (((0, 0, 0), 2 * thin), ((255, 255, 255), thin)):
        first, last = (left - off, top - off), (right + off - 1, bottom + off - 1)
        cv2.rectangle(picture, first, last, colour, thin)
    return picture
