"""Choose the pixel threshold and the cleaning of the mask by the Dice of synthetic defects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.decision import clean_mask, drop_weak

Score = NDArray[np.float32]
Mask = NDArray[np.bool_]

_FACTORS = (0.6, 0.7, 0.85, 1.0, 1.2)  # of the threshold that is best without cleaning
# The limits keep what may be a small defect: lines of 1.6 % of the side and blobs of 0.06 % of the
# frame. On photographs of magnetic tiles (native 300 px) wider ones drop real blowholes.
_OPENINGS = (0, 1, 2, 4)
_WIDEST_OPENING = 0.008  # of the shorter side
_AREAS = np.array([0.0, 5e-5, 1e-4, 2e-4, 4e-4, 6e-4])  # of the frame
_PEAKS = np.array([0.0, 1.15, 1.3, 1.5, 2.0, 3.0])  # of the pixel threshold; 0 keeps every region
_INDIFFERENT = 0.002  # Dice given up for a cleaner mask


@dataclass(frozen=True)
class Cleaning:
    """How a smoothed score becomes a mask, and the Dice of every synthetic image with it."""

    pixel_threshold: float
    open_radius: int
    min_area: int
    region_threshold: float
    dices: tuple[float, ...]

    def mask(self, score: Score) -> Mask:
        """The mask of a weighted and smoothed score map."""
        raw = clean_mask(score > self.pixel_threshold, self.open_radius, self.min_area)
        return drop_weak(raw, score, self.region_threshold)


def choose_cleaning(
    images: Iterable[tuple[Score, Mask]],
    threshold: float,
    frame: tuple[int, int],
    least: float = 0.0,
) -> Cleaning:
    """Try thresholds around `threshold`, openings, smallest areas and region peaks, all combined.

    Among those within 0.002 of the best mean Dice the cleanest is taken: the highest region
    threshold, then the largest smallest area, then the widest opening.

    Args:
        images: (smoothed score, truth) per synthetic image, both (H, W).
        threshold: best without cleaning.
        frame: height and width that the largest opening and smallest area are measured by, px.
        least: lower thresholds are not tried, but `threshold` always is.
    """
    openings = [radius for radius in _OPENINGS if radius <= _WIDEST_OPENING * min(frame)]
    areas = np.unique(np.rint(_AREAS * frame[0] * frame[1]).astype(np.int64))
    levels = [threshold * f for f in _FACTORS if f == 1 or threshold * f >= least]
    tables = [_dice_table(score, truth, levels, openings, areas) for score, truth in images]
    table = np.stack(tables)
    means = table.mean(axis=0)
    good = np.argwhere(means >= means.max() - _INDIFFERENT)
    factor, opening, area, peak = max(
        map(tuple, good), key=lambda at: (at[3], at[2], at[1], means[at])
    )
    level = levels[factor]
    return Cleaning(
        pixel_threshold=float(level),
        open_radius=openings[opening],
        min_area=int(areas[area]),
        region_threshold=float(level * _PEAKS[peak]),
        dices=tuple(float(value) for value in table[:, factor, opening, area, peak]),
    )


def _dice_table(
    score: Score,
    truth: Mask,
    levels: Sequence[float],
    openings: Sequence[int],
    smallest: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Dice of one image, (levels, openings, areas, peaks)."""
    rows = [
        [_dices(score, truth, level, radius, smallest) for radius in openings] for level in levels
    ]
    return np.array(rows)


def _dices(
    score: Score, truth: Mask, level: float, radius: int, smallest: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Dice for every smallest area and peak, from what is known of each region of the mask."""
    mask = clean_mask(score > level, radius, 0)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inside = labels[mask]
    areas = np.bincount(inside, minlength=count)[1:]
    hits = np.bincount(inside, weights=truth[mask], minlength=count)[1:]
    peaks = np.zeros(count, np.float32)
    np.maximum.at(peaks, np.asarray(inside, np.int64), score[mask])
    kept = (areas[:, None, None] >= smallest[:, None]) & (
        peaks[1:, None, None] > np.float32(level) * _PEAKS.astype(np.float32)
    )
    found = (areas[:, None, None] * kept).sum(axis=0)
    true = (hits[:, None, None] * kept).sum(axis=0)
    return np.asarray(2 * true / (found + np.count_nonzero(truth)))
