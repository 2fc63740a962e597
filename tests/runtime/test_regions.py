"""Measures of drawn shapes against their closed forms."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from unblemish.runtime.regions import measure_regions

# A disc on a pixel grid: its outline is uncertain by a pixel on either side.
PIXEL = 1.5


def test_rectangle_is_measured_exactly() -> None:
    mask = np.zeros((30, 40), np.bool_)
    mask[5:9, 7:17] = True
    score = np.where(mask, 0.5, 0.0).astype(np.float32)
    score[6, 8] = 0.9
    (region,) = measure_regions(mask, score, millimetres_per_pixel=0.5)
    assert region.area == 40
    assert region.length == pytest.approx(10)
    assert region.width == pytest.approx(4)
    assert region.diameter == pytest.approx(math.hypot(10, 4))
    assert region.centroid == pytest.approx((11.5, 6.5))
    assert region.box == (7, 5, 10, 4)
    assert region.peak == pytest.approx(0.9)
    assert region.area_mm2 == pytest.approx(10)
    assert region.length_mm == pytest.approx(5)
    assert region.width_mm == pytest.approx(2)
    assert region.diameter_mm == pytest.approx(math.hypot(10, 4) / 2)


@pytest.mark.parametrize("radius", [3, 10, 40])
def test_disc_has_the_area_and_diameter_of_its_circle(radius: int) -> None:
    y, x = np.mgrid[:100, :100]
    mask = (x - 50) ** 2 + (y - 50) ** 2 <= radius**2
    (region,) = measure_regions(mask, mask.astype(np.float32))
    assert region.area == pytest.approx(math.pi * radius**2, rel=0.12 if radius < 5 else 0.03)
    for side in (region.length, region.width, region.diameter):
        assert abs(side - 2 * radius) < PIXEL
    assert region.centroid == pytest.approx((50, 50))


def test_turned_rectangle_keeps_its_sides() -> None:
    canvas = np.zeros((120, 120), np.uint8)
    corners = cv2.boxPoints(((60, 60), (60, 12), 30.0))
    cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1)
    (region,) = measure_regions(canvas.astype(np.bool_), canvas.astype(np.float32))
    assert abs(region.length - 60) < 2 * PIXEL
    assert abs(region.width - 12) < 2 * PIXEL
    assert abs(region.diameter - math.hypot(60, 12)) < 2 * PIXEL


def test_diameter_is_the_largest_distance_of_any_two_corners() -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros((25, 25), np.bool_)
    mask[5:20, 5:20] = cv2.GaussianBlur(rng.random((15, 15)), (0, 0), 2) > 0.5
    for region in measure_regions(mask, mask.astype(np.float32)):
        left, top, width, height = region.box
        _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        cut = labels[top : top + height, left : left + width]
        label = next(v for v in np.unique(cut) if v and (labels == v).sum() == region.area)
        ys, xs = np.nonzero(labels == label)
        corners = np.array(
            [(x + i, y + j) for x, y in zip(xs, ys, strict=True) for i in (0, 1) for j in (0, 1)]
        )
        apart = np.linalg.norm(corners[:, None] - corners[None], axis=2).max()
        assert region.diameter == pytest.approx(apart, rel=1e-6)


def test_single_pixel_is_a_unit_square() -> None:
    mask = np.zeros((5, 5), np.bool_)
    mask[2, 3] = True
    (region,) = measure_regions(mask, mask.astype(np.float32))
    assert (region.area, region.length, region.width) == (1, 1, 1)
    assert region.diameter == pytest.approx(math.sqrt(2))
    assert region.area_mm2 is None


def test_diagonal_neighbours_are_one_region_and_largest_comes_first() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True
    mask[6:9, 6:9] = True
    regions = measure_regions(mask, mask.astype(np.float32))
    assert [r.area for r in regions] == [9, 3]
    assert [r.area for r in measure_regions(mask, mask.astype(np.float32), min_area=4)] == [9]


def test_empty_mask_has_no_regions() -> None:
    assert measure_regions(np.zeros((4, 4), np.bool_), np.zeros((4, 4), np.float32)) == ()
