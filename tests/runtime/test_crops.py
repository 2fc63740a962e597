"""Regions of interest: aligned crops inside their tile, parts that belong to one tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.runtime.crops import (
    Box,
    Grid,
    crop_sizes,
    find_regions,
    label_parts,
    territories,
    whole_regions,
)
from unblemish.runtime.resampling import Axis, axes

GRID = Grid(height=64, width=96, align=8, margin=8, border=3)
SAME = [(Axis(64, 64, 0, 64), Axis(96, 96, 0, 96))]


def test_crops_are_aligned_hold_their_margin_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        top, left = (int(v) for v in rng.integers(0, (60, 90)))
        free = np.zeros((64, 96), np.bool_)
        free[top : top + 9, left : left + 17] = True
        (region,) = find_regions(label_parts(free).items, SAME, GRID)
        crop = region.crop
        assert not any(v % 8 for v in (crop.top, crop.left, crop.bottom, crop.right))
        assert crop.top <= max(top - 8, 0)
        assert crop.bottom >= min(top + 9 + 8, 64)
        assert 0 <= crop.left <= max(left - 8, 0)
        assert min(left + 17 + 8, 96) <= crop.right <= 96
        window = region.window
        assert window.top == max(top - 3, 0)
        assert window.bottom == min(min(top + 9, 64) + 3, 64)


def test_parts_in_reach_of_each_other_share_a_crop_and_far_ones_do_not() -> None:
    free = np.zeros((64, 96), np.bool_)
    free[4:8, 4:8] = free[4:8, 12:16] = True
    free[50:54, 80:84] = True
    regions = find_regions(label_parts(free).items, SAME, GRID)
    assert sorted(len(r.parts) for r in regions) == [1, 2]
    assert sum(r.crop.area for r in regions) < 64 * 96


def test_crops_grow_to_the_smallest_size_that_holds_them() -> None:
    sizes = ((64, 96), (32, 32), (64, 64))
    grid = replace(GRID, sizes=sizes)
    rng = np.random.default_rng(1)
    for _ in range(200):
        top, left = (8 * int(v) for v in rng.integers(0, (7, 11)))
        bottom = top + 8 * int(rng.integers(1, (64 - top) // 8 + 1))
        right = left + 8 * int(rng.integers(1, (96 - left) // 8 + 1))
        crop, asked = grid.fit(Box(top, left, bottom, right)), Box(top, left, bottom, right)
        holding = [h * w for h, w in sizes if h >= asked.height and w >= asked.width]
        assert (crop.height, crop.width) in sizes
        assert crop.area == min(holding)
        assert crop.join(asked) == crop
        assert crop.join(grid.whole()) == grid.whole()
        assert not crop.top % 8
        assert not crop.left % 8


def test_crops_that_no_size_holds_stay_and_joined_ones_have_a_size() -> None:
    small = replace(GRID, sizes=((32, 32), (128, 128)))  # the larger is no part of the tile
    assert small.fit(Box(0, 0, 40, 16)) == Box(0, 0, 40, 16)
    free = np.zeros((64, 96), np.bool_)
    free[20:24, 20:24] = free[20:24, 36:40] = True
    grid = replace(GRID, sizes=((64, 96), (32, 32), (64, 64)))
    for region in find_regions(label_parts(free).items, SAME, grid):
        assert (region.crop.height, region.crop.width) in grid.sizes


@pytest.mark.parametrize(
    ("tile", "align", "sizes"),
    [
        ((224, 224), 16, ((224, 224), (128, 128), (64, 64))),
        ((224, 224), 32, ((224, 224), (128, 128))),
        ((64, 96), 16, ((64, 96),)),
        ((256, 1024), 16, ((256, 1024), (128, 128), (64, 64))),
    ],
)
def test_few_sizes_stand_for_all_crops(
    tile: tuple[int, int], align: int, sizes: tuple[tuple[int, int], ...]
) -> None:
    assert crop_sizes(*tile, align) == sizes


def test_a_crop_reaches_the_border_when_the_defect_does() -> None:
    free = np.zeros((64, 96), np.bool_)
    free[:, 90:] = True
    (region,) = find_regions(label_parts(free).items, SAME, GRID)
    assert (region.crop.top, region.crop.bottom, region.crop.right) == (0, 64, 96)
    assert region.window == Box(0, 87, 64, 96)


def test_tiles_own_disjoint_parts_that_they_show() -> None:
    p = Preprocess(width=48, height=64, channels=1, low=0, high=1, geometry="tiles", scale=0.8)
    shape = (150, 170)
    count = 3 * 4
    spread = [axes(p, shape, tile) for tile in range(count)]
    owned = territories(spread, shape)
    counted = np.zeros(shape, np.int32)
    for box in owned:
        counted[box.slices] += 1
    assert (counted == 1).all()
    parts = label_parts(np.ones(shape, np.bool_), owned)
    assert {part.tile for part in parts.items} <= set(range(count))
    assert (parts.labels > 0).all()
    for part in parts.items:
        rows, columns = spread[part.tile]
        low, high = rows.native_span((0, 64))
        assert low <= part.box.top
        assert part.box.bottom <= high
        low, high = columns.native_span((0, 48))
        assert low <= part.box.left
        assert part.box.right <= high


def test_whole_regions_hold_all_parts_of_a_tile() -> None:
    free = np.zeros((64, 96), np.bool_)
    free[4:8, 4:8] = free[50:54, 80:84] = True
    (region,) = whole_regions(label_parts(free).items, SAME, GRID)
    assert region.crop == Box(0, 0, 64, 96)
    assert region.window == Box(0, 0, 64, 96)
    assert region.parts == (1, 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 99), (989, 1)])
def test_parts_of_awkward_frames(shape: tuple[int, int]) -> None:
    (part,) = label_parts(np.ones(shape, np.bool_)).items
    assert part.box == Box(0, 0, *shape)
    assert not label_parts(np.zeros(shape, np.bool_)).items
