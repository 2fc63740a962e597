"""Masks that a region may have: by colour, by difference from a fill, by the pixel prior."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.searches import Polarity

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

_ROUNDS = 8  # of expectation and maximisation
_ODDS = (-2.0, 0.0, 1.5, 3.0, 5.0)  # log odds of the colour of a defect
_FILL = (12.0, 20.0, 32.0, 50.0)  # levels of 255 between frame and fill
_MEDIAN = (8.0, 14.0, 24.0, 40.0)  # between frame and the median around
_PRIOR = (12.0, 20.0, 40.0)  # squared Mahalanobis distances of colours
_CLOSINGS = (2, 4)  # model px
_LOOSE = (0.05, 0.2)  # of the largest part of a mask; smaller ones may be chance
_MEDIAN_SIDE = 21  # model px
_LEAST_AREA = 4  # model px; smaller parts of a mask are specks
_LARGEST_RATIO = 8.0
_MAP_WEIGHT, _OFFSET = 0.3, 3.0  # of the detector's map in the odds, and how rare defects are
_GREY_BINS, _COLOUR_BINS = 64, 22


@dataclass(frozen=True)
class Palette:
    """Histogram cells of every pixel of a frame, and how normal pixels fill them.

    Args:
        cell: (H, W) uint16 number of the histogram cell.
        normal: (cells,) shares of the pixels outside all regions.
    """

    cell: NDArray[np.uint16]
    normal: Float
    colour: bool

    def histogram(self, cells: NDArray[np.uint16], weight: Float) -> Float:
        """Smoothed shares of weighted pixels."""
        return _histogram(cells, weight, self.colour)


def palette_of(x: Float, outside: Bool, unit: float = 1.0) -> Palette:
    """Count the colours of a frame outside its regions; x (C, H, W) times `unit` is in [0, 1]."""
    colour = x.shape[0] == 3
    cell = np.zeros(x.shape[1:], np.uint16)
    for plane in x:
        levels = np.clip(plane * np.float32(255 * unit), 0, 255)
        cell = cell * _COLOUR_BINS + (levels / 12 if colour else levels / 4).astype(np.uint16)
    return Palette(cell, _histogram(cell[outside], None, colour), colour)


def colour_odds(palette: Palette, window: tuple[slice, slice], free: Bool, strange: Float) -> Float:
    """Log odds that a pixel has the colour of the defect, by expectation maximisation.

    The defect's colours start as those where the detector's map is above its threshold; then
    weight = sigmoid(odds) and histogram of the weights alternate.

    Args:
        free: (h, w) of the window. strange: the detector's map there, 0 at its threshold, 1 at
            twice that.
    Returns: (h, w) float32; -inf where not free.
    """
    cell = palette.cell[window]
    size = palette.normal.size
    floor = 0.02 / size
    normal = np.log(palette.normal + (0.1 * floor if palette.colour else floor))
    lean = _MAP_WEIGHT * np.clip(strange, -1, 3) - _OFFSET
    weight = ((strange > 0) & free).astype(np.float32)
    odds = np.zeros(free.shape, np.float32)
    for _ in range(_ROUNDS):
        ratio = np.log(palette.histogram(cell, weight) + floor) - normal
        likely = np.clip(ratio, -_LARGEST_RATIO, _LARGEST_RATIO)[cell].astype(np.float32)
        odds = 0.5 * likely + cv2.GaussianBlur(likely, (0, 0), 1.0) + lean
        weight = free / (1 + np.exp(-np.clip(odds, -30, 30)))
        weight = weight.astype(np.float32)
    return np.where(free, odds, np.float32(-np.inf)).astype(np.float32)


def candidate_masks(
    x: Float,
    fill: Float,
    free: Bool,
    odds: Float,
    rarity: Float | None,
    area: float,
    polarity: Polarity = "both",
) -> list[Bool]:
    """Different masks of a window, none of them empty.

    Args:
        x, fill: (C, h, w) in [0, 1]: the frame and n0.
        rarity: (h, w) `Prior.distances` of the frame, if there is a prior.
        odds: of `colour_odds`. area: model px per pixel.
        polarity: dark: only pixels darker than the median around them; bright: brighter.
    """
    median = _median(x, area)
    maps: list[tuple[Float, tuple[float, ...]]] = [
        (odds, _ODDS),
        (255 * np.abs(x - fill).max(axis=0), _FILL),
        (255 * np.abs(x - median).max(axis=0), _MEDIAN),
    ]
    if rarity is not None:
        maps.append((rarity, _PRIOR))
    if polarity != "both":
        sign = 1 if polarity == "bright" else -1
        free = free & (sign * (x - median).mean(axis=0) > 0)
    found: list[Bool] = []
    least = max(round(_LEAST_AREA / area), 1)
    for values, levels in maps:
        for level in levels:
            mask = without_specks((values > level) & free, least)
            if mask.any() and not any(np.array_equal(mask, other) for other in found):
                found.append(mask)
    return found


def neighbouring_masks(mask: Bool, free: Bool, core: Bool, area: float) -> list[Bool]:
    """What a mask may become in one step: closed, filled, opened, or without its loose parts.

    A defect that the light of the surface shines through keeps the surface's dark lines, which no
    threshold on colours flags; and what lies apart from the detector's peak may be chance.

    Args:
        mask, free: (h, w). core: where the detector's map is above its threshold.
        area: model px per pixel.
    """
    if not mask.any():
        return []
    pixels = mask.astype(np.uint8)
    found = [_morphed(pixels, cv2.MORPH_CLOSE, radius, area) & free for radius in _CLOSINGS]
    found.append(_filled(pixels) & free)
    found.append(_morphed(pixels, cv2.MORPH_OPEN, 1, area))
    count, labels = cv2.connectedComponents(pixels, connectivity=8)
    if count > 2:
        touching = np.zeros(count, np.bool_)
        touching[np.unique(labels[mask & core])] = True
        touching[0] = False
        found.append(np.asarray(touching[labels]))
        sizes = np.bincount(labels.ravel(), minlength=count)
        for share in _LOOSE:
            large = sizes >= share * sizes[1:].max()
            large[0] = False
            found.append(np.asarray(large[labels]))
    return [other for other in found if other.any() and not np.array_equal(other, mask)]


def _morphed(pixels: NDArray[np.uint8], operation: int, radius: int, area: float) -> Bool:
    side = 2 * max(round(radius / np.sqrt(area)), 1) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    padded = cv2.copyMakeBorder(pixels, side, side, side, side, cv2.BORDER_REPLICATE)
    inner = cv2.morphologyEx(padded, operation, disc)[side:-side, side:-side]
    return np.asarray(inner > 0)


def _filled(pixels: NDArray[np.uint8]) -> Bool:
    """With the holes that the background does not reach."""
    padded = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(padded, None, (0, 0), 2)
    return np.asarray(padded[1:-1, 1:-1] != 2)


def without_specks(mask: Bool, least: int) -> Bool:
    """The mask without connected parts of fewer than `least` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    large = np.zeros(count, np.bool_)
    large[1:] = stats[1:, cv2.CC_STAT_AREA] >= least
    return np.asarray(large[labels])


def _median(x: Float, area: float) -> Float:
    side = max(int(_MEDIAN_SIDE / np.sqrt(area)) // 2 * 2 + 1, 3)
    planes = [cv2.medianBlur(np.rint(255 * np.clip(p, 0, 1)).astype(np.uint8), side) for p in x]
    return np.stack(planes).astype(np.float32) / np.float32(255)


def _histogram(cells: NDArray[np.uint16], weight: Float | None, colour: bool) -> Float:
    size = _COLOUR_BINS**3 if colour else _GREY_BINS
    flat = None if weight is None else weight.ravel()
    weighed = np.bincount(cells.ravel(), weights=flat, minlength=size)
    counts = np.asarray(weighed / max(float(weighed.sum()), 1e-9), np.float64)
    if not colour:
        line = np.ascontiguousarray(counts[None], np.float32)
        return np.asarray(
            cv2.GaussianBlur(line, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)[0], np.float32
        )
    cube: Float = counts.reshape((_COLOUR_BINS,) * 3).astype(np.float32)
    for axis in range(3):
        cube = np.moveaxis(_blurred(np.moveaxis(cube, axis, 0)), 0, axis)
    return np.ascontiguousarray(cube).reshape(-1)


def _blurred(cube: Float) -> Float:
    """Gaussian of 0.7 cells along the first axis, edges repeated."""
    flat = np.ascontiguousarray(cube.reshape(cube.shape[0], -1))
    kernel = cv2.getGaussianKernel(7, 0.7, cv2.CV_32F)
    out = cv2.sepFilter2D(flat, -1, np.ones((1, 1), np.float32), kernel,
                          borderType=cv2.BORDER_REPLICATE)  # fmt: skip
    return np.asarray(out, np.float32).reshape(cube.shape)
