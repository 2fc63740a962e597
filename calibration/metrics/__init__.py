"""Figures of merit of masks, score maps and verdicts."""

from unblemish.calibration.metrics.curves import ScoreCounts, best_dice, image_auroc
from unblemish.calibration.metrics.evaluation import Judged, evaluate
from unblemish.calibration.metrics.overlap import dice, iou
from unblemish.calibration.metrics.truth import find_truth, read_truth

__all__ = [
    "Judged",
    "ScoreCounts",
    "best_dice",
    "dice",
    "evaluate",
    "find_truth",
    "image_auroc",
    "iou",
    "read_truth",
]
