"""Figures over all thresholds: best Dice of one image, AUROC and AUPRO of many.

One image is treated exactly. Over many native-size maps the pixels are counted in bins of the
float's own bits: memory does not grow with the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.metrics.overlap import check_same_shape

# Sign, 8 bits of exponent and 11 of the mantissa: scores closer than 2^-11 (0.05 %) count as ties.
_DROPPED_BITS = 12
_BINS = 1 << (32 - _DROPPED_BITS)
AUPRO_LIMIT = 0.3  # largest false positive rate, as in the MVTec AD evaluation


def best_dice(score: NDArray[np.floating[Any]], truth: NDArray[Any]) -> tuple[float, float] | None:
    """Largest Dice over all thresholds, and the threshold: the mask is score >= threshold.

    Exact. Only scores of defect pixels are tried: between two of them the Dice falls with the
    threshold.

    Args:
        score: (H, W), any float; NaN counts as the lowest score.
        truth: (H, W), bool or numbers of which all but 0 are defect.
    Returns: (Dice, threshold), or None where the truth is empty.
    Raises: ShapeError where the shapes differ.
    """
    check_same_shape(score, truth)
    inside = truth.astype(np.bool_, copy=False)
    clean = _without_nan(score)
    positive = np.sort(clean[inside])
    if positive.size == 0:
        return None
    negative = np.sort(clean[~inside & (clean >= positive[0])])
    true = positive.size - np.searchsorted(positive, positive, side="left")
    false = negative.size - np.searchsorted(negative, positive, side="left")
    values = 2 * true / (true + false + positive.size)
    at = int(np.argmax(values))
    return float(values[at]), float(positive[at])


def image_auroc(
    normal: NDArray[np.floating[Any]], defective: NDArray[np.floating[Any]]
) -> float | None:
    """Probability that a defective image scores above a normal one, ties counting one half.

    Exact (rank statistic). None where either side is empty. NaN counts as the lowest score.
    """
    if normal.size == 0 or defective.size == 0:
        return None
    low = np.sort(_without_nan(normal))
    high = _without_nan(defective)
    below = np.searchsorted(low, high, side="left")
    upto = np.searchsorted(low, high, side="right")
    return float((below + upto).sum() / 2 / low.size / high.size)


@dataclass
class ScoreCounts:
    """Counts of pixels by score: normal, defective, defective weighted by 1 / area of region."""

    normal: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    defective: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    overlap: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_BINS, np.float64))
    regions: int = 0

    def add(self, score: NDArray[np.floating[Any]], truth: NDArray[Any] | None) -> None:
        """Count one map; `truth` None means all normal.

        Raises: ShapeError where the shapes differ.
        """
        bins = _bin_of(score)
        if truth is None or not truth.any():
            _count(self.normal, bins.ravel())
            return
        check_same_shape(score, truth)
        inside = truth.astype(np.bool_, copy=False)
        found, labels = cv2.connectedComponents(inside.view(np.uint8), connectivity=8)
        areas = np.bincount(labels.ravel(), minlength=found)
        _count(self.normal, bins[~inside])
        _count(self.defective, bins[inside])
        np.add.at(self.overlap, bins[inside], 1.0 / areas[labels[inside]])
        self.regions += found - 1

    def merge(self, other: ScoreCounts) -> None:
        """Add the counts of `other`."""
        self.normal += other.normal
        self.defective += other.defective
        self.overlap += other.overlap
        self.regions += other.regions

    def auroc(self) -> float | None:
        """Area under the pixel ROC curve; None where a class is empty."""
        positives, negatives = int(self.defective.sum()), int(self.normal.sum())
        if positives == 0 or negatives == 0:
            return None
        # Mann-Whitney with ties at one half: per bin, normals below plus half of those beside.
        used = np.flatnonzero(self.defective)
        upto = np.cumsum(self.normal)
        below = upto[used] - self.normal[used] / 2
        return float(below @ self.defective[used] / positives / negatives)

    def aupro(self, limit: float = AUPRO_LIMIT) -> float | None:
        """Mean share of each region found, integrated over the false positive rate up to `limit`,
        over `limit`.

        Regions are 8-connected parts of the truth; the false positive rate counts every normal
        pixel, those of defective images included; between thresholds the curve is straight, `limit`
        included. None where there is no region or no normal pixel.
        Source: the AUPRO of the MVTec AD benchmark.
        """
        negatives = int(self.normal.sum())
        if self.regions == 0 or negatives == 0:
            return None
        used = np.flatnonzero((self.normal > 0) | (self.overlap > 0))[::-1]
        false = np.concatenate([[0.0], np.cumsum(self.normal[used]) / negatives])
        found = np.concatenate([[0.0], np.cumsum(self.overlap[used]) / self.regions])
        return float(_area_up_to(false, found, limit) / limit)


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoid rule of the polyline (x ascending) from 0 to `limit`."""
    cut = int(np.searchsorted(x, limit, side="right"))
    xs, ys = x[:cut], y[:cut]
    if cut < x.size and xs[-1] < limit:
        share = (limit - x[cut - 1]) / (x[cut] - x[cut - 1])
        xs = np.append(xs, limit)
        ys = np.append(ys, y[cut - 1] + share * (y[cut] - y[cut - 1]))
    return float(((xs[1:] - xs[:-1]) * (ys[1:] + ys[:-1]) / 2).sum())


def _without_nan(score: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.where(np.isnan(score), -np.inf, score) if np.isnan(score).any() else score


def _bin_of(score: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Monotone bin of a float32: its bits, with negative numbers turned round."""
    # Adding zero turns -0.0 into +0.0, which must share a bin.
    bits = (_without_nan(score).astype(np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return np.asarray(ordered >> _DROPPED_BITS, np.int64)


def _count(counts: NDArray[np.int64], bins: NDArray[np.int64]) -> None:
    if bins.size == 0:
        return
    low = int(bins.min())
    found = np.bincount(bins - low)
    counts[low : low + found.size] += found
