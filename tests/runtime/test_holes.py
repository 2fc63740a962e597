"""Frames with holes: every kind of frame is filled in the hole, and untouched elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import ShapeError, SourceError
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.holes import open_hole

GEOMETRIES = [
    {"geometry": "stretch"},
    {"geometry": "letterbox"},
    {"geometry": "tiles", "overlap": 0.5},
]


def geometry(channels: int = 1, low: float = 0.0, high: float = 1.0, **fields: Any) -> Geometry:
    return Geometry(
        Preprocess(width=16, height=16, channels=channels, low=low, high=high, **fields)
    )


def frame_of(dtype: str, channels: int, height: int = 20, width: int = 30) -> Any:
    """A slope with fine noise, (H, W) or (H, W, channels)."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0.3, 0.6, width) * np.ones((height, 1))
    unit = slope[:, :, None] * np.linspace(1, 0.7, channels)
    unit = unit + rng.uniform(-1e-3, 1e-3, unit.shape)
    level = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    made = unit * level if level == 1 else np.rint(unit * level)
    return (made[:, :, 0] if channels == 1 else made).astype(dtype)


def hole_of(height: int = 20, width: int = 30) -> Any:
    hole = np.zeros((height, width), np.bool_)
    hole[5:11, 8:17] = hole[0:2, 27:30] = True
    return hole


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("model", [1, 3])
def test_frames_of_every_kind_are_filled_and_else_stay_bit_by_bit(
    dtype: str, channels: int, model: int
) -> None:
    frame, hole, g = frame_of(dtype, channels), hole_of(), geometry(model)
    bad = frame.copy()
    bad[hole] = 0
    before = bad.copy()
    holed = open_hole(bad, hole, g)
    filled = holed.filled(holed.images, g)
    assert (filled.dtype, filled.shape) == (frame.dtype, frame.shape)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    np.testing.assert_array_equal(bad, before)
    colours = filled if channels == 1 else filled[:, :, : 1 if channels == 2 else 3]
    wanted = frame if channels == 1 else frame[:, :, : colours.shape[2]]
    level = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    apart = np.abs(colours.astype(float) - wanted)[hole] / level
    assert apart.max() < 0.03  # the model image has half the width
    if channels in (2, 4):
        np.testing.assert_array_equal(filled[..., -1], bad[..., -1])


@pytest.mark.parametrize("fields", GEOMETRIES)
@pytest.mark.parametrize("size", [(20, 30), (9, 11), (50, 70)])
def test_what_the_model_shows_of_the_hole_comes_back(fields: Any, size: Any) -> None:
    g, hole = geometry(low=-1.0, high=1.0, **fields), np.zeros(size, np.bool_)
    hole[2:6, 3:8] = True
    frame = np.full(size, 0.5, np.float32)
    holed = open_hole(frame, hole, g)
    bump = np.where(holed.free, np.float32(0.4), 0)
    filled = holed.filled(holed.images + bump, g)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    middle = filled[3:5, 5:6]  # what differs at the rim is carried in, and taken from the bump
    assert ((middle > 0.51) & (middle < 0.71)).all()


@pytest.mark.parametrize("fields", GEOMETRIES)
def test_every_model_pixel_that_sees_the_hole_is_free(fields: Any) -> None:
    g, hole = geometry(**fields), np.zeros((33, 47), np.bool_)
    hole[7:12, 20:29] = True
    frame = np.full((33, 47), 0.5, np.float32)
    plain = open_hole(frame, hole, g, smooth=False)
    marked = open_hole(np.where(hole, np.float32(1), frame), hole, g, smooth=False)
    changed = np.abs(marked.images - plain.images) > 1e-3
    assert changed.any()
    assert plain.free[changed].all()


def test_an_empty_mask_changes_nothing_and_a_whole_one_all() -> None:
    frame, g = frame_of("uint8", 1), geometry()
    nothing = open_hole(frame, np.zeros(frame.shape, np.bool_), g)
    assert not nothing.free.any()
    np.testing.assert_array_equal(nothing.filled(1 - nothing.images, g), frame)
    whole = open_hole(frame, np.ones(frame.shape, np.bool_), g)
    assert whole.free.all()
    filled = whole.filled(np.full_like(whole.images, 0.25), g)
    np.testing.assert_array_equal(filled, np.full_like(frame, 64))


def test_masks_of_numbers_are_holes_where_they_are_not_zero() -> None:
    frame, hole, g = frame_of("uint8", 1), hole_of(), geometry()
    for mask in (hole.astype(np.uint8) * 255, hole.astype(float) * 0.1):
        np.testing.assert_array_equal(open_hole(frame, mask, g).hole, hole)


def test_a_mask_or_frame_that_does_not_fit_is_refused() -> None:
    frame, g = frame_of("uint8", 3), geometry()
    for mask in (np.zeros((4, 4), np.bool_), np.zeros(frame.shape, np.bool_)):
        with pytest.raises(ShapeError, match=r"frame's size \(20, 30\)"):
            open_hole(frame, mask, g)
    with pytest.raises(SourceError, match="NaN"):
        open_hole(np.full((20, 30), np.nan, np.float32), hole_of(), g)
