"""The table of figures over a set of inspected images, overall and per category."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.metrics.curves import ScoreCounts, best_dice, image_auroc
from unblemish.calibration.metrics.overlap import dice, iou
from unblemish.calibration.metrics.truth import NORMAL

Figures = dict[str, "float | int | None"]


class Judged(NamedTuple):
    """One inspected image with its truth (None: normal, or no mask known)."""

    category: str
    score: NDArray[np.floating[Any]]
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None
    image_score: float
    verdict: str


@dataclass
class _Tally:
    """What is kept of the images of one category."""

    best: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    image_scores: list[float] = field(default_factory=list)
    failed: int = 0
    pixels: ScoreCounts = field(default_factory=ScoreCounts)

    def add(self, item: Judged, normal: bool) -> None:
        self.image_scores.append(item.image_score)
        self.failed += item.verdict == "fail"
        truth = None if normal else item.truth
        if not normal and truth is None:
            return
        self.pixels.add(item.score, truth)
        best = None if truth is None else best_dice(item.score, truth)
        if truth is None or best is None:
            return
        self.best.append(best[0])
        self.dice.append(dice(item.mask, truth) or 0.0)
        self.iou.append(iou(item.mask, truth) or 0.0)


def evaluate(results: Iterable[tuple[Any, ...] | Judged]) -> dict[str, Any]:
    """Judge inspected images against their truth, one pass, in memory independent of their number.

    `dice_best_per_image`: mean over the images of their best Dice over all thresholds;
    `dice_at_threshold` and `iou_at_threshold`: mean over the images of the overlap of `mask`; all
    three over the images with a defect in the truth. `pixel_auroc` and `aupro` (to a false positive
    rate of 0.3): over the category's pixels and those of the normals; scores within 0.05 % count as
    ties. `image_auroc`: the category's images against the normals. `false_reject_rate`: share of
    the normal images with verdict 'fail'; `detection_rate`: of the defective ones. `images`: number
    of images. What cannot be said (no defects, no normals) is None.

    Args:
        results: (category, score, mask, truth, image_score, verdict) per image, see `Judged`; the
            category 'good' is normal, whatever its truth says. Images of a defect category without
            truth count only in `image_auroc` and `images`.
    Returns: {'overall': figures, 'per_category': {category: figures}}.
    Raises: ShapeError where a map and its truth differ in size.
    """
    tallies: dict[str, _Tally] = {}
    for result in results:
        item = Judged(*result)
        tallies.setdefault(item.category, _Tally()).add(item, item.category == NORMAL)
    normal = tallies.get(NORMAL, _Tally())
    categories = {
        name: _figures(tally, normal, name == NORMAL) for name, tally in sorted(tallies.items())
    }
    everything = _together(tally for name, tally in tallies.items() if name != NORMAL)
    overall = _figures(everything, normal, False)
    overall["false_reject_rate"] = _share_failed(normal)
    overall["images"] = sum(len(tally.image_scores) for tally in tallies.values())
    return {"overall": overall, "per_category": categories}


def _figures(tally: _Tally, normal: _Tally, is_normal: bool) -> Figures:
    pixels = ScoreCounts()
    if not is_normal:
        pixels.merge(tally.pixels)
        pixels.merge(normal.pixels)
    auroc = image_auroc(np.array(normal.image_scores), np.array(tally.image_scores))
    return {
        "dice_best_per_image": _mean(tally.best),
        "dice_at_threshold": _mean(tally.dice),
        "iou_at_threshold": _mean(tally.iou),
        "pixel_auroc": pixels.auroc(),
        "aupro": pixels.aupro(),
        "image_auroc": None if is_normal else auroc,
        "detection_rate": None if is_normal else _share_failed(tally),
        "false_reject_rate": _share_failed(tally) if is_normal else None,
        "images": len(tally.image_scores),
    }


def _together(tallies: Iterable[_Tally]) -> _Tally:
    total = _Tally()
    for tally in tallies:
        total.best += tally.best
        total.dice += tally.dice
        total.iou += tally.iou
        total.image_scores += tally.image_scores
        total.failed += tally.failed
        total.pixels.merge(tally.pixels)
    return total


def _share_failed(tally: _Tally) -> float | None:
    return tally.failed / len(tally.image_scores) if tally.image_scores else None


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
