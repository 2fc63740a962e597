"""Choose F2PAD's weights on synthetic defects: what flagged pixels cost, and the pixel prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.calibration.defects import SyntheticDefect
from unblemish.calibration.metrics import dice
from unblemish.calibration.race import race_bundles
from unblemish.runtime.found import Found
from unblemish.runtime.inspector import Inspector

# What is chosen, one after the other, with the values tried. Seed 003 searches over alpha_1, beta_0
# and the number of Gaussians, and fixes alpha_2.
_GRIDS: dict[str, dict[str, Sequence[float]]] = {
    "fast": {"beta": (0.025, 0.05, 0.1, 0.2)},
    "paper": {
        "beta0": (1e3, 1e4, 1e5, 1e6),
        "alpha1": (0.01, 0.1, 1.0),
        "tolerance": (0.1, 0.2, 0.4, 0.8),
    },
}


def choose_weights(
    bundle: Bundle,
    inspector: Inspector,
    samples: Sequence[SyntheticDefect],
    progress: Callable[[], None],
) -> Bundle:
    """Race the weights of the inspector's schedule, each with the best of those before.

    The mean Dice of the refined masks decides; the number of Gaussians comes last.

    The inspector, opened with refine='f2pad', is left with the bundle returned.
    Args:
        bundle: with the levels of normal frames. progress: called after every search.
    Returns: the bundle with the weights and `components`, in memory alone.
    """
    for name, values in _GRIDS[inspector.schedule].items():
        options = [_with(bundle, **{name: value}) for value in values]
        bundle = race_bundles(options, inspector, samples, _dice, progress)
    detector = bundle.manifest.detector
    mixtures = range(len(detector.mixtures)) if detector is not None else range(0)
    if len(mixtures) > 1:
        options = [_with(bundle, components=count) for count in mixtures]
        bundle = race_bundles(options, inspector, samples, _dice, progress)
    return bundle


def _dice(found: Found, truth: NDArray[np.bool_]) -> float:
    return dice(found.mask > 0, truth) or 0.0


def _with(bundle: Bundle, **changes: Any) -> Bundle:
    settings = bundle.manifest.f2pad.model_copy(update=changes)
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"f2pad": settings}))
