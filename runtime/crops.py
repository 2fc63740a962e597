"""Regions of interest: the native pixels that are searched, and the model crop for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.resampling import Axis, Span

Bool = NDArray[np.bool_]
Size = tuple[int, int]

BATCH_PIXELS = 2 * 224 * 224  # model px of the crops that go through the engine together
_SMALLEST = 4  # sides of the smallest crop that engines are built for, in multiples of `align`


@dataclass(frozen=True)
class Box:
    """Rows top..bottom and columns left..right (behind the last) of an image."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the last two axes of an image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def join(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


@dataclass(frozen=True)
class Region:
    """Pixels that are searched together.

    Args:
        tile: model image that shows them.
        crop: of the model image, sides multiples of the detector's `align`.
        window: native pixels that hold the free ones.
        parts: labels of the connected parts of the free pixels that belong here.
    """

    tile: int
    crop: Box
    window: Box
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """What crops may be cut from a tile.

    Args:
        height, width: of the tile, model px. align: see `Detector.align`.
        margin: model px of surroundings on every side of the free pixels.
        border: native px around the free pixels that the window holds too (neighbours that share
            gradients, and those of the total variation).
        sizes: (height, width) of crops that the engine was built for; () where it takes all.
    """

    height: int
    width: int
    align: int
    margin: int
    border: int
    sizes: tuple[Size, ...] = ()

    def crop(self, rows: Span, columns: Span) -> Box:
        """The aligned crop around model pixels, as large as the margin asks and the tile allows."""
        top, bottom = self._axis(rows, self.height)
        left, right = self._axis(columns, self.width)
        return self.fit(Box(top, left, bottom, right))

    def fit(self, crop: Box) -> Box:
        """The crop grown to the smallest of `sizes` that holds it, or as it is where none does."""
        holding = [s for s in self.sizes if s[0] >= crop.height and s[1] >= crop.width
                   and s[0] <= self.height and s[1] <= self.width]  # fmt: skip
        if not holding:
            return crop
        height, width = min(holding, key=lambda s: s[0] * s[1])
        top = self._grown(crop.top, height - crop.height, self.height - height)
        left = self._grown(crop.left, width - crop.width, self.width - width)
        return Box(top, left, top + height, left + width)

    def _grown(self, first: int, more: int, last: int) -> int:
        """Where a side begins that grows by `more` px, half of it before, at `last` at most."""
        return min(max(first - more // 2 // self.align * self.align, 0), last)

    def whole(self) -> Box:
        """The tile itself."""
        return Box(0, 0, self.height, self.width)

    def _axis(self, span: Span, length: int) -> Span:
        """Sides are multiples of twice `align`, so that few sizes occur, where there is room."""
        a = self.align
        first = max(span[0] - self.margin, 0) // a * a
        last = min(-(-(span[1] + self.margin) // a) * a, length)
        odd = (last - first) // a % 2
        if odd and last + a <= length:
            last += a
        elif odd and first >= a:
            first -= a
        return first, last


@dataclass(frozen=True)
class Part:
    """A connected part of the free pixels: its number in the label image, native box, tile."""

    number: int
    box: Box
    tile: int


@dataclass(frozen=True)
class Parts:
    """Connected parts of the free pixels; `labels` is (H, W) int32, 0 where nothing is free."""

    labels: NDArray[np.int32]
    items: tuple[Part, ...]


def crop_sizes(height: int, width: int, align: int) -> tuple[Size, ...]:
    """Few sizes of crops for engines that are built for each: the tile, and ever smaller squares.

    Sides double from 4 `align` on, so that a crop grows to 4 times its pixels at most, unless it
    is long and thin.
    """
    sides, side = [], _SMALLEST * align
    while side < min(height, width):
        sides.append((side, side))
        side *= 2
    return ((height, width), *reversed(sides))


def label_parts(free: Bool, territories: Sequence[Box] | None = None) -> Parts:
    """Split free pixels (H, W) into connected parts (8 neighbours), each within one tile.

    Args:
        territories: of every tile, see there; None where there is one tile.
    """
    labels = np.zeros(free.shape, np.int32)
    items: list[Part] = []
    for tile, box in enumerate(territories or [Box(0, 0, *free.shape)]):
        mine = free[box.slices]
        if not mine.any():
            continue
        count, found, stats, _ = cv2.connectedComponentsWithStats(
            mine.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S
        )
        first = len(items)
        labels[box.slices] = np.where(found > 0, found + first, 0)
        for number, (x, y, w, h, _) in enumerate(stats[1:count].tolist(), first + 1):
            top, left = box.top + y, box.left + x
            items.append(Part(number, Box(top, left, top + h, left + w), tile))
    return Parts(labels, tuple(items))


def territories(axes: Sequence[tuple[Axis, Axis]], shape: tuple[int, int]) -> list[Box]:
    """For every tile the native pixels whose nearest tile, by its middle, it is.

    Together they are the frame; tiles stand in rows and columns, so each is a rectangle.
    """
    rows = _nearest([rows for rows, _ in axes], shape[0])
    columns = _nearest([columns for _, columns in axes], shape[1])
    return [Box(rows[r][0], columns[c][0], rows[r][1], columns[c][1]) for r, c in axes]


def _nearest(axes: Sequence[Axis], length: int) -> dict[Axis, Span]:
    """The native indices that are nearest to the middle of each of the different axes."""
    different = list(dict.fromkeys(axes))
    nearest = np.argmin([_distance(axis, length) for axis in different], axis=0)
    spans = {}
    for number, axis in enumerate(different):
        mine = np.flatnonzero(nearest == number)
        spans[axis] = (int(mine[0]), int(mine[-1]) + 1) if mine.size else (0, 0)
    return spans


def _distance(axis: Axis, length: int) -> NDArray[np.float64]:
    """From native pixels to the middle of the tile along one axis, model px."""
    place = (np.arange(length) + 0.5) * axis.scale - axis.offset
    distance: NDArray[np.float64] = np.abs(place - axis.length / 2)
    return distance


def find_regions(
    parts: Sequence[Part], axes: Sequence[tuple[Axis, Axis]], grid: Grid
) -> list[Region]:
    """Crops for the parts of a frame; those that are cheaper together than apart are joined.

    Args:
        axes: rows and columns of every tile.
    """
    regions = [_region(part, axes[part.tile], grid) for part in parts]
    joined: list[Region] = []
    while regions:
        region = regions.pop()
        for other in joined:
            both = _join(region, other, grid)
            if both is not None:
                joined.remove(other)
                regions.append(both)
                break
        else:
            joined.append(region)
    return sorted(joined, key=lambda r: (r.tile, r.parts))


def whole_regions(
    parts: Sequence[Part], axes: Sequence[tuple[Axis, Axis]], grid: Grid
) -> list[Region]:
    """All parts of a tile together, with the whole tile as their crop."""
    regions = []
    for tile in sorted({part.tile for part in parts}):
        (top, bottom), (left, right) = (
            axis.native_span((0, length))
            for axis, length in zip(axes[tile], (grid.height, grid.width), strict=True)
        )
        numbers = tuple(part.number for part in parts if part.tile == tile)
        regions.append(Region(tile, grid.whole(), Box(top, left, bottom, right), numbers))
    return regions


def _region(part: Part, axes: tuple[Axis, Axis], grid: Grid) -> Region:
    (rows, columns), box = axes, part.box
    crop = grid.crop(
        rows.model_span((box.top, box.bottom)), columns.model_span((box.left, box.right))
    )
    window = Box(
        max(box.top - grid.border, 0),
        max(box.left - grid.border, 0),
        min(box.bottom + grid.border, rows.source),
        min(box.right + grid.border, columns.source),
    )
    return Region(part.tile, crop, window, (part.number,))


def _join(one: Region, other: Region, grid: Grid) -> Region | None:
    """Both in one crop, or None where two crops are cheaper."""
    crop = grid.fit(one.crop.join(other.crop))
    if one.tile != other.tile or crop.area > one.crop.area + other.crop.area:
        return None
    parts = tuple(sorted((*one.parts, *other.parts)))
    return Region(one.tile, crop, one.window.join(other.window), parts)
