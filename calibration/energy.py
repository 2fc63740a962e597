"""What is chosen of the energy projection on synthetic defects, and among which values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.searches import EnergySettings
from unblemish.calibration.defects import SyntheticDefect
from unblemish.calibration.metrics import best_dice
from unblemish.calibration.race import FIRST, race_bundles
from unblemish.calibration.tuning import Scope
from unblemish.runtime.found import Found
from unblemish.runtime.inspector import Inspector

_MARGIN = 2.0  # scores reach beyond those of the first few synthetic defects
COMPARING = ("energy", "latent", "none")  # whose score compares the frame with another image
_CODE_WEIGHTS = (0.01, 0.1, 1.0, 10.0)  # of -log p(z), seed 002, eq. 6
_WEIGHTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the l1 distance, times the bundle's
# Of the paper's schedule, one after the other, each with the best of those before: step sizes as
# multiples of the bundle's, and where among the training losses the search stops.
_STEP_SIZES = (0.5, 1.0, 2.0, 4.0)
_QUANTILES = (0.0, 0.05, 0.25, 0.5)


def prepare_energy(
    bundle: Bundle,
    settings: EnergySettings,
    search: Any,
    samples: Sequence[SyntheticDefect],
    progress: Callable[[], None],
) -> tuple[Bundle, Scope]:
    """Settings of score and steps, where they matter, and the weights of the l1 distance to try.

    DSSIM or the residual, what shows defects better differs from part to part; maps of one pass
    are neither, and have no range of their own. Without a search nothing hangs on the weight.

    Args:
        search: what calibration searches with; an inspector is left with the bundle returned.
    Returns: the bundle, changed in memory alone, and the scope of the choice of lambda.
    """
    refine = getattr(search, "refine", "energy")
    weights: tuple[float, ...] = (settings.lam or 1.0,)
    if refine not in COMPARING:
        scores = (search.search(samples[i].image).score for i in range(min(FIRST, len(samples))))
        return bundle, Scope(_MARGIN * max(float(score.max()) for score in scores), weights)
    if isinstance(search, Inspector):
        if refine == "energy" and search.schedule == "paper":
            bundle = choose_steps(bundle, search, samples, progress)
        bundle = choose_score(bundle, search, samples, progress)
    if refine == "latent":
        weights = _CODE_WEIGHTS
    elif refine == "energy":
        weights = tuple(weight * step for weight in weights for step in _WEIGHTS)
    return bundle, Scope(_span(bundle), weights)


def choose_score(
    bundle: Bundle,
    inspector: Inspector,
    samples: Sequence[SyntheticDefect],
    progress: Callable[[], None],
) -> Bundle:
    """Race what frame and projection are compared by, by the best Dice of every score map.

    The inspector is left with the bundle returned.
    """
    options = [bundle.with_energy(score=score) for score in ("dssim", "l2")]
    return race_bundles(options, inspector, samples[: 2 * FIRST], _best_dice, progress)


def _span(bundle: Bundle) -> float:
    """Range of the scores."""
    p, settings = bundle.manifest.preprocess, bundle.manifest.energy
    assert settings is not None
    return 1.0 if settings.score == "dssim" else p.high - p.low


def choose_steps(
    bundle: Bundle,
    inspector: Inspector,
    samples: Sequence[SyntheticDefect],
    progress: Callable[[], None],
) -> Bundle:
    """Race step size and stop quantile of the paper's schedule by the best Dice of every score map.

    The inspector is left with the bundle returned. Source: seed 002, sections 3.4 and 3.5.
    """
    settings = bundle.manifest.energy
    assert settings is not None
    grids: dict[str, Sequence[float]] = {"alpha": [settings.alpha * m for m in _STEP_SIZES]}
    if settings.training_losses:
        grids["stop_quantile"] = _QUANTILES
    some = samples[: 2 * FIRST]
    for name, values in grids.items():
        options = [bundle.with_energy(**{name: value}) for value in values]
        bundle = race_bundles(options, inspector, some, _best_dice, progress)
    return bundle


def _best_dice(found: Found, truth: NDArray[np.bool_]) -> float:
    best = best_dice(found.score, truth)
    return 0.0 if best is None else best[0]
