"""With lambda fixed: choose weights, smoothing, pixel threshold, cleaning and image threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.cleaning import Cleaning, choose_cleaning
from unblemish.calibration.defects import SyntheticDefect
from unblemish.calibration.normals import KINDS
from unblemish.calibration.result import Example, KindFigures
from unblemish.calibration.scores import Score
from unblemish.calibration.spread import can_weigh_places, cross_weights, fit_level
from unblemish.calibration.thresholds import TailThreshold, reject_threshold
from unblemish.calibration.tuning import (
    SIGMAS,
    Trial,
    best_trial,
    scaled_sigmas,
    score_levels,
    smoothing_curves,
)
from unblemish.calibration.verdict import IMAGE_SIGMAS, Judge, choose_judge, peaks
from unblemish.runtime.decision import smooth
from unblemish.runtime.weighting import ScoreWeight

Pair = tuple[ScoreWeight, ScoreWeight]
Scores = NDArray[np.float64]

WORTHWHILE = 0.005  # mean Dice that weights must add to be kept


@dataclass(frozen=True)
class View:
    """How raw score maps are looked at: weights, then smoothing.

    Args:
        name: 'plain', 'level', 'weights' or 'weights and level'.
        weight: for new images; None leaves the scores as they are.
        crossed: for normal image i, weights that have not seen it, at i % 2.
        trial: smoothing and threshold of the largest mean Dice of the synthetic images.
    """

    name: str
    weight: ScoreWeight | None
    crossed: tuple[ScoreWeight, ScoreWeight] | None
    trial: Trial

    def new(self, score: Score) -> Score:
        """Weighted score of an image that the weights have not seen."""
        return score if self.weight is None else self.weight(score)

    def normal(self, index: int, score: Score) -> Score:
        """Weighted score of normal image `index`, by weights that have not seen it."""
        return score if self.crossed is None else self.crossed[index % 2](score)

    def smooth(self, weighted: Score) -> Score:
        """What the mask is made of."""
        return smooth(weighted, self.trial.sigma)


@dataclass(frozen=True)
class Settled:
    """Everything that follows from the score maps; see `CalibrationResult` for the fields."""

    view: View
    views: tuple[View, ...]
    cleaning: Cleaning
    reject: TailThreshold
    image_sigma: float
    by_evidence: bool
    normal_scores: Scores
    defect_scores: Scores
    clean_normals: float
    kinds: tuple[KindFigures, ...]
    examples: tuple[Example, ...]


def settle(
    preprocess: Preprocess,
    normals: Sequence[Score],
    defects: Sequence[Score],
    samples: Sequence[SyntheticDefect],
    false_reject: float,
    lam: float,
    frame: tuple[int, int],
    span: float | None = None,
    sigmas: Sequence[float] = SIGMAS,
    evidence: tuple[Scores, Scores] | None = None,
    floor: float | None = None,
) -> Settled:
    """Choose everything but lambda.

    Args:
        normals, defects: raw score maps of the normal and the synthetic images, native geometry.
        samples: the synthetic images, in the order of `defects`.
        frame: typical height and width, px: the scale of smoothing and cleaning.
        span: range that scores take; None for that of the model's intensities.
        sigmas: smoothings to choose from, px of frames up to 400 px.
        evidence: image scores of normals and defects, where the search gives its own.
        floor: where normals were fitted, so that their scores are lower than those of new ones:
            pixel thresholds lie above it, and no weights are learned from such scores.
    Raises: CalibrationError where there are too few normals.
    """
    side = min(frame)
    levels = score_levels(preprocess.high - preprocess.low if span is None else span)
    scaled = scaled_sigmas(sigmas, side)
    if floor is not None:
        levels = levels[levels > floor]
    views = _views(preprocess, normals, defects, samples, lam, scaled, levels, weigh=floor is None)
    view = views[0]
    for other in views[1:]:
        view = other if other.trial.dice >= view.trial.dice + WORTHWHILE else view
    cleaning = choose_cleaning(
        (
            (view.smooth(view.new(score)), sample.mask)
            for score, sample in zip(defects, samples, strict=True)
        ),
        view.trial.threshold,
        frame,
        floor or 0.0,
    )
    masks = (cleaning.mask(view.smooth(view.normal(i, raw))) for i, raw in enumerate(normals))
    clean = sum(not mask.any() for mask in masks)
    judge = _judge(view, normals, defects, side, false_reject, evidence, fitted=floor is not None)
    reject = reject_threshold(judge.normals, false_reject)
    return Settled(
        view=view,
        views=views,
        cleaning=cleaning,
        reject=reject,
        image_sigma=judge.sigma or 0.0,
        by_evidence=judge.sigma is None,
        normal_scores=judge.normals,
        defect_scores=judge.defects,
        clean_normals=clean / len(normals),
        kinds=_kinds(samples, cleaning, judge.defects > reject.value),
        examples=tuple(_examples(view, defects, samples, cleaning)),
    )


def _views(
    preprocess: Preprocess,
    normals: Sequence[Score],
    defects: Sequence[Score],
    samples: Sequence[SyntheticDefect],
    lam: float,
    sigmas: Sequence[float],
    levels: NDArray[np.float64],
    *,
    weigh: bool = True,
) -> tuple[View, ...]:
    """Every way of weighing that these images allow, the simpler first; one without `weigh`."""

    def view(name: str, weight: ScoreWeight | None, crossed: Pair | None) -> View:
        pairs = zip(defects, samples, strict=True)
        weighted = weight or _as_it_is
        curves = [smoothing_curves(weighted(score), s.mask, levels, sigmas) for score, s in pairs]
        return View(name, weight, crossed, best_trial(lam, curves, levels, sigmas))

    views = [view("plain", None, None)]
    if not weigh:
        return tuple(views)
    even = ScoreWeight(None, preprocess)
    views += _levelled(view, "level", even, (even, even), normals)
    if can_weigh_places(preprocess, len(normals)):
        weight, crossed = cross_weights(normals, preprocess)
        views.append(view("weights", weight, crossed))
        views += _levelled(view, "weights and level", weight, crossed, normals)
    return tuple(views)


def _levelled(
    view: Callable[[str, ScoreWeight, Pair], View],
    name: str,
    weight: ScoreWeight,
    crossed: Pair,
    normals: Sequence[Score],
) -> list[View]:
    """The view with the level of frames beside the weights by place, where there is a level."""
    level = fit_level(crossed[i % 2](score) for i, score in enumerate(normals))
    if level is None:
        return []
    pair = replace(crossed[0], level=level), replace(crossed[1], level=level)
    return [view(name, replace(weight, level=level), pair)]


def _as_it_is(score: Score) -> Score:
    return score


def _judge(
    view: View,
    normals: Sequence[Score],
    defects: Sequence[Score],
    side: int,
    false_reject: float,
    evidence: tuple[Scores, Scores] | None,
    *,
    fitted: bool,
) -> Judge:
    """The map's peak or the evidence; the latter where maps of fitted normals say nothing."""
    given = None if evidence is None else Judge(*evidence)
    if given is not None and fitted:
        return given
    sigmas = scaled_sigmas(IMAGE_SIGMAS, side)
    low = np.array([peaks(view.normal(i, raw), sigmas) for i, raw in enumerate(normals)])
    high = np.array([peaks(view.new(raw), sigmas) for raw in defects])
    maps = [Judge(low[:, k], high[:, k], sigma) for k, sigma in enumerate(sigmas)]
    return choose_judge(maps, given, false_reject)


def _kinds(
    samples: Sequence[SyntheticDefect], cleaning: Cleaning, detected: NDArray[np.bool_]
) -> tuple[KindFigures, ...]:
    dices = np.array(cleaning.dices)
    rows = [np.arange(start, len(samples), len(KINDS)) for start in range(len(KINDS))]
    return tuple(
        KindFigures(shape, fill, len(at), float(dices[at].mean()), float(detected[at].mean()))
        for (shape, fill), at in zip(KINDS, rows, strict=True)
    )


def _examples(
    view: View,
    defects: Sequence[Score],
    samples: Sequence[SyntheticDefect],
    cleaning: Cleaning,
) -> Iterator[Example]:
    """The first synthetic image of every kind: chosen by its number, not by its success."""
    for index in range(len(KINDS)):
        sample = samples[index]
        mask = cleaning.mask(view.smooth(view.new(defects[index])))
        yield Example(
            sample.image, sample.mask, mask, sample.shape, sample.fill, cleaning.dices[index]
        )
