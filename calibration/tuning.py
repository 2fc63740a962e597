"""Choose lambda and the smoothing by the Dice of synthetic defects, coarse to fine.

A search per image and lambda is what costs; so every search serves all smoothings and thresholds,
all lambdas start on few images, and only those that may still win get more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.defects import SyntheticDefect
from unblemish.calibration.race import FIRST, race
from unblemish.errors import CalibrationError
from unblemish.runtime.decision import smooth

ScoreOf = Callable[[NDArray[Any], float], NDArray[np.float32]]
"""(frame, lambda) -> score map, (H, W) float32, unit: model intensity."""

SIGMAS = (0.0, 0.7, 1.0, 1.5, 2.0, 3.0)  # px of frames up to 400 px
_LEVELS = 160


@dataclass(frozen=True)
class Scope:
    """What there is to tune.

    Args:
        span: range that scores take. grid: values of the one scalar of the search.
        sigmas: smoothings, px of frames up to 400 px.
    """

    span: float
    grid: tuple[float, ...]
    sigmas: tuple[float, ...] = SIGMAS


@dataclass(frozen=True)
class Trial:
    """What one lambda gave, at its own best smoothing and common threshold.

    Args:
        dice, spread: mean and standard deviation over `images` synthetic images.
        threshold: score threshold common to all images, model intensity.
    """

    lam: float
    dice: float
    spread: float
    sigma: float
    threshold: float
    images: int


@dataclass(frozen=True)
class Tuning:
    """The lambda chosen and all that were tried, by increasing lambda."""

    best: Trial
    trials: tuple[Trial, ...]


def lambda_grid(intensity_range: float, channels: int, points: int = 7) -> tuple[float, ...]:
    """Coarse logarithmic grid of lambda.

    A pixel enters the mask where 2 r^2 > lambda, r^2 summed over the channels: the grid runs from
    residuals of 1 % to 100 % of the intensity range.
    """
    onset = np.logspace(-2, 0, points) * intensity_range
    return tuple(float(value) for value in 2 * channels * onset**2)


def score_levels(intensity_range: float) -> NDArray[np.float64]:
    """Thresholds tried: 160 from 0.1 % to 200 % of the range, 5 % apart."""
    return np.asarray(np.geomspace(1e-3 * intensity_range, 2 * intensity_range, _LEVELS))


def scaled_sigmas(sigmas: Sequence[float], side: float) -> tuple[float, ...]:
    """Smoothings for frames whose shorter side is `side` px: as they are up to 400 px, then in
    proportion, up to four times (wide Gaussians on large frames cost inspection time).
    """
    factor = min(max(side / 400, 1.0), 4.0)
    return tuple(round(sigma * factor, 2) for sigma in sigmas)


def dice_curve(
    score: NDArray[np.float32], truth: NDArray[np.bool_], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Dice of the masks score > level, one per level (ascending)."""
    inside = score[truth]
    found, true = _above(score.ravel(), levels), _above(inside, levels)
    return np.asarray(2 * true / (found + inside.size))


def _above(values: NDArray[np.float32], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of values above each level."""
    return np.asarray(values.size - np.searchsorted(np.sort(values), levels, side="right"))


def smoothing_curves(
    score: NDArray[np.float32],
    truth: NDArray[np.bool_],
    levels: NDArray[np.float64],
    sigmas: Sequence[float] = SIGMAS,
) -> NDArray[np.float64]:
    """Dice of one image for every smoothing and threshold, (sigmas, levels)."""
    return np.stack([dice_curve(smooth(score, sigma), truth, levels) for sigma in sigmas])


def best_trial(
    lam: float,
    curves: Sequence[NDArray[np.float64]],
    levels: NDArray[np.float64],
    sigmas: Sequence[float] = SIGMAS,
) -> Trial:
    """The smoothing and threshold, common to all images, of the largest mean Dice."""
    table = np.stack(curves)
    sigma, level = divmod(int(np.argmax(table.mean(axis=0))), levels.size)
    dices = table[:, sigma, level]
    return Trial(
        lam,
        float(dices.mean()),
        float(dices.std()),
        float(sigmas[sigma]),
        float(levels[level]),
        len(dices),
    )


class Tuner:
    """Dice curves of (lambda, image), computed once and kept: (sigmas, levels) float64 each."""

    def __init__(
        self,
        samples: Sequence[SyntheticDefect],
        score_of: ScoreOf,
        levels: NDArray[np.float64],
        *,
        sigmas: Sequence[float] = SIGMAS,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.samples = samples
        self.levels = levels
        self.sigmas = tuple(sigmas)
        self._score_of = score_of
        self._progress = progress
        self._curves: dict[float, list[NDArray[np.float64]]] = {}

    def tune(self, grid: Sequence[float]) -> Tuning:
        """Race the grid, then halve the distance to the best one's neighbours twice.

        Raises: CalibrationError where no lambda finds anything.
        """
        best = self._race(sorted(grid))
        step = (max(grid) / min(grid)) ** (1 / max(1, len(grid) - 1))
        for exponent in (0.5, 0.25):
            near = [best * step**-exponent, best, best * step**exponent]
            best = self._race(near, first=2 * FIRST)
        trials = tuple(self.trial(lam) for lam in sorted(self._curves))
        chosen = self.trial(best)
        if chosen.dice <= 0:
            raise CalibrationError(
                "the bundle finds none of the synthetic defects at any lambda. "
                "Check that the model was trained on such parts (unblemish show), and the images."
            )
        return Tuning(chosen, trials)

    def trial(self, lam: float) -> Trial:
        """Best common smoothing and threshold of one lambda over the images it has seen."""
        return best_trial(lam, self._curves[lam], self.levels, self.sigmas)

    def _race(self, lams: Sequence[float], first: int = FIRST) -> float:
        def dices(lam: float, count: int) -> NDArray[np.float64]:
            self._extend(lam, count)
            return self._dices(lam, count)

        return race(lams, dices, len(self.samples), first)

    def _dices(self, lam: float, count: int) -> NDArray[np.float64]:
        curves = np.stack(self._curves[lam][:count])
        at = int(np.argmax(curves.mean(axis=0)))
        return np.asarray(curves.reshape(count, -1)[:, at])

    def _extend(self, lam: float, count: int) -> None:
        curves = self._curves.setdefault(lam, [])
        for index in range(len(curves), count):
            sample = self.samples[index]
            score = self._score_of(sample.image, lam)
            curves.append(smoothing_curves(score, sample.mask, self.levels, self.sigmas))
            self._progress()
