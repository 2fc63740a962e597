"""Paste a synthetic defect on a normal frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.searches import Polarity
from unblemish.calibration.defects.fills import (
    Fill,
    fill_colour,
    white_of,
    with_contrast,
    with_polarity,
)
from unblemish.calibration.defects.shapes import Shape, draw_shape
from unblemish.errors import ConfigError


@dataclass(frozen=True)
class SyntheticDefect:
    """A normal frame with one defect, and the exact mask of it.

    Args:
        image: shape and dtype of the frame; equal to the frame outside the mask.
        mask: (H, W) bool.
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    shape: Shape
    fill: Fill


def paste_defect(
    frame: NDArray[Any],
    rng: np.random.Generator,
    *,
    shape: Shape,
    fill: Fill,
    contrast: float = 0.1,
    white: float | None = None,
    polarity: Polarity = "both",
) -> SyntheticDefect:
    """Paste one random defect: x = (1 - m) n + m a, with a at least `contrast` away from n.

    Args:
        frame: n, (H, W) or (H, W, C), uint8, uint16 or floating in [0, 1]; not changed. With C = 2
            or 4 the last channel is alpha, and stays.
        rng: the only source of randomness: the same state gives the same defect.
        shape: family of the mask m, see `draw_shape`.
        fill: colour a, 'random' or 'mean', see `fill_colour`.
        contrast: smallest change in at least one channel, as a share of white, in (0, 0.45].
        white: intensity of white, where it is not 255, 65535 or 1 (12 bits in uint16: 4095).
        polarity: 'dark' or 'bright' for defects that are so throughout, see `with_polarity`.
    Returns: a new image of the frame's shape and dtype, with the exact mask.
    Raises: ShapeError for other frames; ConfigError for an unknown shape or fill, a frame below
        16 x 16 px, or a contrast outside its range.
    Source: seed 003, eq. 16; seed 000, appendix F.
    """
    level = white_of(frame) if white is None else white
    if not 0 < contrast <= 0.45:
        raise ConfigError(f"contrast must be in (0, 0.45], as a share of white; found {contrast}.")
    mask = draw_shape(shape, frame.shape[0], frame.shape[1], rng)
    image = np.array(frame)
    planes = image[:, :, None] if image.ndim == 2 else image
    colours = slice(0, 1 if planes.shape[2] < 3 else 3)
    pixels = planes[mask][:, colours].astype(np.float64)
    colour = fill_colour(fill, pixels, level, rng, polarity)
    whole = np.issubdtype(frame.dtype, np.integer)
    if whole:
        colour = np.rint(colour)
    least = np.ceil(contrast * level) if whole else contrast * level
    if polarity == "both":
        painted = with_contrast(colour, pixels, float(least), level, rng)
    else:
        painted = with_polarity(colour, pixels, float(least), level, polarity)
    covered = planes[mask]
    covered[:, colours] = painted.astype(frame.dtype)
    planes[mask] = covered
    return SyntheticDefect(image, mask, shape, fill)
