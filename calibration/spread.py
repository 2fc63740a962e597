"""Fit the per-pixel weights of the score on normal images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.scores import Score
from unblemish.runtime.weighting import ScoreWeight, plain_geometry, weight_of

FEWEST = 20  # normals per map; below, the map is one of their noise
_BLUR = 1.5  # model px: neighbours lend each other their statistics


def fit_weight(scores: Iterable[Score], preprocess: Preprocess) -> ScoreWeight:
    """Weights from the mean score of normal images, brought to the model's size and smoothed."""
    geometry = plain_geometry(preprocess)
    total = np.zeros((preprocess.height, preprocess.width))
    count = 0
    for score in scores:
        total += geometry.unit_to_model(score[..., None])[0, 0]
        count += 1
    spread = cv2.GaussianBlur((total / max(count, 1)).astype(np.float32), (0, 0), _BLUR)
    return ScoreWeight(weight_of(np.maximum(np.asarray(spread, np.float32), 0)), preprocess)


def can_weight(preprocess: Preprocess, normals: int) -> bool:
    """Whether weights make sense: one model image per frame, and 20 normals in each half."""
    return preprocess.geometry != "tiles" and normals >= 2 * FEWEST


def cross_weights(
    scores: Sequence[Score], preprocess: Preprocess
) -> tuple[ScoreWeight, tuple[ScoreWeight, ScoreWeight]]:
    """Weights of all images, and for image i the weights of the half that it is not in (i % 2).

    An image's own peak raises the spread where it lies and so lowers its own score: thresholds that
    are set on images weighted by themselves reject too many others.
    """
    odd, even = (
        fit_weight((scores[i] for i in range(start, len(scores), 2)), preprocess)
        for start in (1, 0)
    )
    return fit_weight(scores, preprocess), (odd, even)
