"""Overlays: the outline is exact, what is measured is what is written."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from unblemish.images import decode_image
from unblemish.report.overlay import (
    OUTLINE,
    PASSED,
    TRUTH,
    draw_overlay,
    fit_height,
    heat_map,
    label_of,
    png_bytes,
    side_by_side,
    to_display,
)
from unblemish.runtime.inspection import Region


def region(**changes: object) -> Region:
    """A region of 20 x 8 px at (30, 40)."""
    fields: dict[str, object] = {
        "area": 160.0, "length": 20.0, "width": 8.0, "diameter": 21.5,
        "centroid": (39.5, 43.5), "box": (30, 40, 20, 8), "peak": 0.5,
    }  # fmt: skip
    return Region(**{**fields, **changes})  # type: ignore[arg-type]


def outlined(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels of exactly that colour."""
    return (picture == np.array(colour, np.uint8)).all(axis=2)


def test_outline_surrounds_the_mask_and_covers_none_of_it(rng: np.random.Generator) -> None:
    frame = rng.integers(0, 200, (600, 520), np.uint8)
    mask = cv2.GaussianBlur(rng.standard_normal(frame.shape), (0, 0), 9) > 0.05
    picture = draw_overlay(frame, mask)
    assert picture.shape == (600, 520, 3)
    np.testing.assert_array_equal(picture[mask], np.repeat(frame[mask][:, None], 3, axis=1))
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    np.testing.assert_array_equal(outlined(picture, OUTLINE), beside & ~mask)


def test_small_frames_are_enlarged_pixel_by_pixel() -> None:
    frame = np.arange(100 * 60, dtype=np.uint8).reshape(100, 60)
    picture = draw_overlay(frame, np.zeros(frame.shape, np.bool_))
    assert picture.shape == (600, 360, 3)
    np.testing.assert_array_equal(picture[::6, ::6, 0], frame)


def test_truth_is_drawn_beneath_the_mask() -> None:
    frame, mask = np.zeros((600, 600), np.uint8), np.zeros((600, 600), np.bool_)
    mask[100:200, 100:200] = True
    assert not outlined(draw_overlay(frame, mask, truth=mask), TRUTH).any()
    assert outlined(draw_overlay(frame, mask, truth=np.roll(mask, 50)), TRUTH).any()


def test_labels_leave_the_region_free() -> None:
    frame, mask = np.full((600, 600), 90, np.uint8), np.zeros((600, 600), np.bool_)
    bare, labelled = draw_overlay(frame, mask), draw_overlay(frame, mask, [region()])
    changed = (bare != labelled).any(axis=2)
    assert changed.any()
    assert not changed[40:48, 30:50].any()


@pytest.mark.parametrize("box", [(0, 0, 3, 3), (590, 0, 10, 4), (0, 590, 9, 10), (0, 0, 600, 600)])
def test_labels_stay_inside_the_picture(box: tuple[int, int, int, int]) -> None:
    frame = np.full((600, 600), 90, np.uint8)
    picture = draw_overlay(frame, np.zeros(frame.shape, np.bool_), [region(box=box)])
    assert picture.shape == (600, 600, 3)
    assert (picture != 90).any()


def test_label_states_millimetres_where_known() -> None:
    assert label_of(region()) == "20 x 8 px"
    assert label_of(region(length_mm=1.234, width_mm=0.5)) == "1.23 x 0.50 mm"


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (np.array([[0, 255]], np.uint8), (0, 255)),
        (np.array([[0, 65535]], np.uint16), (0, 255)),
        (np.array([[0, 4095]], np.uint16), (0, 255)),
        (np.array([[0.0, 1.0]], np.float32), (0, 255)),
        (np.array([[0.0, 0.5]], np.float32), (0, 128)),
        (np.array([[-3.0, 5.0]], np.float32), (0, 255)),
        (np.array([[False, True]]), (0, 255)),
    ],
)
def test_display_spans_the_range_of_the_pixel_type(
    frame: np.ndarray, shown: tuple[int, int]
) -> None:
    picture = to_display(frame)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, :, 1]) == shown


def test_display_never_shares_memory_with_the_frame() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    assert not np.shares_memory(to_display(frame), frame)


def test_heat_map_is_brightest_at_twice_the_threshold() -> None:
    light = heat_map(np.array([[0.0, 0.1, 0.2, 9.0]], np.float32), 0.1).sum(axis=2)[0]
    assert light[0] < light[1] < light[2] == light[3]


def test_heat_map_of_nothing_is_dark() -> None:
    assert heat_map(np.zeros((3, 3), np.float32)).sum(axis=2).max() < 20


def test_side_by_side_sets_panels_of_any_size_in_one_row(rng: np.random.Generator) -> None:
    panels = [("one", rng.random((50, 70)).astype(np.float32)), ("two", np.zeros((9, 9), np.uint8))]
    row = side_by_side(panels, height=120)
    assert row.shape[2] == 3
    assert row.shape[1] >= 168 + 120
    np.testing.assert_array_equal(decode_image(png_bytes(row)), row)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (300, 300)])
def test_fit_height_bounds_the_width_of_a_strip(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 90, np.uint8)
    fitted = fit_height(picture, 200)
    assert fitted.shape[0] == 200
    assert 1 <= fitted.shape[1] <= 800
    assert (fitted == 90).any()


def test_draw_overlay_tells_marks_of_a_passed_part_apart() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:9, 5:9] = True
    picture = draw_overlay(np.zeros((20, 20), np.uint8), mask, passed=True, least_side=20)
    assert (picture == PASSED).all(axis=2).any()
    assert not (picture == OUTLINE).all(axis=2).any()
