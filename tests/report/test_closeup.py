"""Close-ups: the window holds every region, the crop is what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.report.closeup import closeup_window, draw_closeup, mark_window
from unblemish.runtime.inspection import Region


def region(left: int, top: int, width: int, height: int) -> Region:
    """A region that fills its box."""
    size, centre = float(max(width, height)), (left + width / 2, top + height / 2)
    area, box = float(width * height), (left, top, width, height)
    return Region(area, size, size, size, centre, box, peak=1.0)


@pytest.mark.parametrize(
    "boxes",
    [
        [(0, 0, 5, 5)],
        [(250, 190, 6, 10)],
        [(100, 100, 60, 3)],
        [(20, 30, 5, 5), (70, 60, 5, 9)],
    ],
)
def test_window_is_a_square_inside_the_frame_that_holds_all_regions(
    boxes: list[tuple[int, int, int, int]],
) -> None:
    window = closeup_window((200, 256), [region(*box) for box in boxes])
    assert window is not None
    left, top, right, bottom = window
    assert right - left == bottom - top
    assert 0 <= left < right <= 256
    assert 0 <= top < bottom <= 200
    for x, y, width, height in boxes:
        assert left <= x
        assert top <= y
        assert x + width <= right
        assert y + height <= bottom


def test_no_window_without_regions_or_where_they_fill_the_frame() -> None:
    assert closeup_window((200, 256), []) is None
    assert closeup_window((200, 256), [region(10, 10, 200, 150)]) is None
    assert closeup_window((20, 20), [region(3, 3, 4, 4)]) is None


def test_closeup_enlarges_the_pixels_of_the_window(rng: np.random.Generator) -> None:
    frame = rng.integers(0, 255, (200, 256), np.uint8)
    mask = np.zeros(frame.shape, np.bool_)
    picture = draw_closeup(frame, mask, [], (30, 20, 110, 100), least_side=320)
    assert picture.shape == (320, 320, 3)
    np.testing.assert_array_equal(picture[::4, ::4, 0], frame[20:100, 30:110])


def test_marked_window_stays_untouched_inside(rng: np.random.Generator) -> None:
    frame = rng.integers(1, 255, (200, 256), np.uint8)
    marked = mark_window(frame, (30, 20, 110, 100))
    np.testing.assert_array_equal(marked[20:100, 30:110, 0], frame[20:100, 30:110])
    assert (marked[19, 30:110] == 255).all()
    assert (marked[18, 30:110] == 0).all()
