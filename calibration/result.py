"""What a calibration found, for the manifest, the table and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Calibration
from unblemish.calibration.defects import Fill, Shape
from unblemish.calibration.normals import Normals
from unblemish.calibration.seen import Seen
from unblemish.calibration.thresholds import TailThreshold
from unblemish.calibration.tuning import Trial, Tuning


@dataclass(frozen=True)
class KindFigures:
    """How one kind of synthetic defect fares with the settings chosen: means over `images`."""

    shape: Shape
    fill: Fill
    images: int
    dice: float
    detected: float  # share with verdict 'fail'


@dataclass(frozen=True)
class Example:
    """One synthetic defect with what was found."""

    frame: NDArray[Any]
    truth: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    shape: Shape
    fill: Fill
    dice: float


@dataclass(frozen=True)
class CalibrationResult:
    """The outcome of `calibrate`.

    Args:
        bundle: with the calibration written.
        calibration: what was written; `lam` the lambda in the bundle's RGI settings.
        tuning: every lambda tried.
        views: best smoothing by way of weighing the scores ('plain', 'level', 'weights', 'weights
            and level'; weights by place need 40 normals and no tiles); `view` the one chosen.
        reject: the image threshold and what it is worth.
        normal_scores, defect_scores: image scores of the normals and the synthetic defects; in
            place of normals that were fitted, of all that were where they were not seen.
        clean_normals: share of the normals whose mask is empty.
        kinds: figures by shape and fill; `examples` one of each kind.
        normals: the images used and those set aside.
        seen: which of them a detector was fitted on; its `warning` says where that did harm.
        seconds: time taken.
    """

    bundle: Bundle
    calibration: Calibration
    lam: float
    tuning: Tuning
    views: dict[str, Trial]
    view: str
    reject: TailThreshold
    normal_scores: NDArray[np.float64]
    defect_scores: NDArray[np.float64]
    clean_normals: float
    kinds: tuple[KindFigures, ...]
    examples: tuple[Example, ...]
    normals: Normals
    seen: Seen
    seconds: float
