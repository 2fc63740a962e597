"""Fit the weights of the score, by place and by frame, on normal images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.scores import Score
from unblemish.runtime.weighting import (
    Level,
    Map,
    ScoreWeight,
    frame_level,
    plain_geometry,
    weight_of,
)

FEWEST = 20  # normals per map; below, the map is one of their noise
_BLUR = 1.5  # model px: neighbours lend each other their statistics


def fit_values(scores: Iterable[Score], preprocess: Preprocess) -> Map:
    """Weights by place from the root mean square score of normals, smoothed at the model's size."""
    geometry = plain_geometry(preprocess)
    total = np.zeros((preprocess.height, preprocess.width))
    count = 0
    for score in scores:
        total += np.square(geometry.unit_to_model(score[..., None])[0, 0], dtype=np.float64)
        count += 1
    spread = np.sqrt(total / max(count, 1)).astype(np.float32)
    return weight_of(np.asarray(cv2.GaussianBlur(spread, (0, 0), _BLUR), np.float32))


def fit_level(scores: Iterable[Score]) -> Level | None:
    """Level of normal frames; None where most of their scores are zero."""
    medians = [frame_level(score) for score in scores]
    typical = float(np.median(medians))
    return Level(typical, max(medians)) if typical > 0 else None


def can_weigh_places(preprocess: Preprocess, normals: int) -> bool:
    """Whether weights by place make sense: one model image per frame, 20 normals in each half."""
    return preprocess.geometry != "tiles" and normals >= 2 * FEWEST


def cross_weights(
    scores: Sequence[Score], preprocess: Preprocess
) -> tuple[ScoreWeight, tuple[ScoreWeight, ScoreWeight]]:
    """Weights of all images, and for image i the weights of the half that it is not in (i % 2).

    An image's own peak raises the spread where it lies and so lowers its own score: thresholds that
    are set on images weighted by themselves reject too many others.
    """
    odd, even = (
        ScoreWeight(
            fit_values((scores[i] for i in range(start, len(scores), 2)), preprocess),
            preprocess,
        )
        for start in (1, 0)
    )
    return ScoreWeight(fit_values(scores, preprocess), preprocess), (odd, even)
