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
    """Settings of the steps, where they matter, and the weights of the l1 distance to try.

    Without a search nothing hangs on the weight; maps of one pass have no range of their own.

    Args:
        search: what calibration searches with; an inspector is left with the bundle returned.
    Returns: the bundle, changed in memory alone, and the scope of the choice of lambda.
    """
    p = bundle.manifest.preprocess
    span = 1.0 if settings.score == "dssim" else p.high - p.low
    refine = getattr(search, "refine", "energy")
    if refine == "energy":
        if isinstance(search, Inspector) and search.schedule == "paper":
            bundle = choose_steps(bundle, search, samples, progress)
        return bundle, Scope(span, tuple((settings.lam or 1.0) * weight for weight in _WEIGHTS))
    if refine == "latent":
        return bundle, Scope(span, _CODE_WEIGHTS)
    if refine != "none":
        scores = (search.search(samples[i].image).score for i in range(min(FIRST, len(samples))))
        span = _MARGIN * max(float(score.max()) for score in scores)
    return bundle, Scope(span, (settings.lam or 1.0,))


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
