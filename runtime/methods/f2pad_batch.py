"""Regions of equal size as the arrays of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.crops import Box, Part, Region
from unblemish.runtime.detectors.crops import Tiles
from unblemish.runtime.methods.candidates import Palette, palette_of
from unblemish.runtime.methods.decomposition import View
from unblemish.runtime.resampling import Axis
from unblemish.runtime.solvers.protocol import Float

Bool = NDArray[np.bool_]
Byte = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """One frame under search, at the resolution of the search.

    Args:
        x, start: (C, H, W) the frame and n0, in units.
        images, tiles: (T, C, h, w) model images of n0 and of the frame, in model intensities.
        labels: (H, W) int32, part k + 1 of the free pixels. plain: (H, W) the initial mask.
        map: (H, W) the detector's map, in units of its threshold. distances: the map itself.
        axes: of every tile. unit: intensity that counts as 1. gain: model intensities per unit.
        seen: the tiles under the detector.
    """

    x: Float
    start: Float
    images: Float
    tiles: Float
    labels: NDArray[np.int32]
    plain: Bool
    map: Float
    distances: Float
    axes: Sequence[tuple[Axis, Axis]]
    unit: float
    gain: float
    seen: Tiles

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.labels.shape[0], self.labels.shape[1]

    @cached_property
    def palette(self) -> Palette:
        """The colours of the pixels that are not free."""
        return palette_of(self.x, self.labels == 0, self.unit)

    def area(self, tile: int) -> float:
        """Model pixels per pixel of the search."""
        rows, columns = self.axes[tile]
        return rows.scale * columns.scale


@dataclass(frozen=True)
class Batch:
    """Regions whose crops have one size, with windows made equal.

    Args:
        regions: rows of the batch. windows: of the frame, one each.
        x, start: (N, C, H, W) in units. free: (N, 1, H, W) uint8.
        view: from windows to crops, about the start.
        near: (N, h, w) share of every model pixel that is free.
        flagged: (N,) model pixels of the initial mask among the free ones.
        area: (N,) model pixels per pixel.
    """

    regions: tuple[Region, ...]
    windows: tuple[Box, ...]
    x: Float
    start: Float
    free: Byte
    view: View
    near: Float
    flagged: NDArray[np.float64]
    area: NDArray[np.float64]


def reduce(frame: Frame, parts: Sequence[Part], factor: int) -> tuple[Frame, list[Part]]:
    """The frame at 1/factor of its size, and these parts in it. Model images stay as they are."""
    if factor == 1:
        return frame, list(parts)
    height, width = (-(-side // factor) for side in frame.shape)
    labels = cv2.resize(
        frame.labels.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST
    )
    small = replace(
        frame,
        x=_smaller(frame.x, height, width),
        start=_smaller(frame.start, height, width),
        labels=labels.astype(np.int32),
        plain=_smaller(frame.plain[None].astype(np.float32), height, width)[0] >= 0.5,
        map=_smaller(frame.map[None], height, width)[0],
        distances=_smaller(frame.distances[None], height, width)[0],
        axes=[(replace(r, source=height), replace(c, source=width)) for r, c in frame.axes],
    )
    return small, [replace(p, box=_box_of(p, small.labels)) for p in parts]


def _smaller(image: Float, height: int, width: int) -> Float:
    planes = [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in image]
    return np.stack(planes).astype(np.float32, copy=False)


def _box_of(part: Part, labels: NDArray[np.int32]) -> Box:
    rows, columns = (np.flatnonzero((labels == part.number).any(axis=a)) for a in (1, 0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def batches(regions: Sequence[Region], most: int) -> list[list[Region]]:
    """Regions of equal crop size together, as many as have at most `most` model pixels."""
    by_size: dict[tuple[int, int], list[Region]] = {}
    for region in regions:
        by_size.setdefault((region.crop.height, region.crop.width), []).append(region)
    out = []
    for (height, width), group in by_size.items():
        count = max(most // (height * width), 1)
        out += [group[i : i + count] for i in range(0, len(group), count)]
    return out


def make_batch(frame: Frame, regions: Sequence[Region]) -> Batch:
    """Cut the windows and crops of these regions."""
    windows = _windows(frame, regions)
    free = np.stack([
        np.isin(frame.labels[w.slices], r.parts) for r, w in zip(regions, windows, strict=True)
    ])  # fmt: skip
    view = _view(frame, regions, windows)
    near = np.matmul(view.down, np.matmul(free.astype(np.float32), view.across))
    area = np.array([frame.area(r.tile) for r in regions])
    plain = np.stack([frame.plain[w.slices] for w in windows]) & free
    return Batch(
        tuple(regions),
        windows,
        np.stack([frame.x[(slice(None), *w.slices)] for w in windows]),
        view.base,
        np.ascontiguousarray(free[:, None].astype(np.uint8)),
        view,
        near,
        plain.sum(axis=(1, 2)) * area,
        area,
    )


def _windows(frame: Frame, regions: Sequence[Region]) -> tuple[Box, ...]:
    """The windows, grown to one size within the frame."""
    height = max(r.window.height for r in regions)
    width = max(r.window.width for r in regions)
    out = []
    for region in regions:
        top = min(region.window.top, frame.shape[0] - height)
        left = min(region.window.left, frame.shape[1] - width)
        out.append(Box(top, left, top + height, left + width))
    return tuple(out)


def _view(frame: Frame, regions: Sequence[Region], windows: Sequence[Box]) -> View:
    down, across, images = [], [], []
    for region, window in zip(regions, windows, strict=True):
        rows, columns = frame.axes[region.tile]
        crop = region.crop
        down.append(rows.matrix((crop.top, crop.bottom), (window.top, window.bottom)))
        across.append(columns.matrix((crop.left, crop.right), (window.left, window.right)).T)
        images.append(frame.images[region.tile][(slice(None), *crop.slices)])
    base = np.stack([frame.start[(slice(None), *w.slices)] for w in windows])
    return View(
        base, np.stack(images), np.stack(down), np.ascontiguousarray(np.stack(across)), frame.gain
    )
