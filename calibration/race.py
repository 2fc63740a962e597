"""Race options on synthetic defects: all start on few images, those that may still win get more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.calibration.defects import SyntheticDefect
from unblemish.runtime.found import Found
from unblemish.runtime.inspector import Inspector

Option = TypeVar("Option")

FIRST = 8  # images on which every option is tried: each shape with each fill once
_STANDARD_ERRORS = 2.0  # an option is given up where it is worse than the best by more


def race(
    options: Sequence[Option],
    dices: Callable[[Option, int], NDArray[np.float64]],
    total: int,
    first: int = FIRST,
) -> Option:
    """The option of the largest mean.

    Args:
        dices: (option, n) -> the figures of the first n images, (n,).
        total: images at most. first: of the first round; each round doubles them.
    """
    alive = list(options)
    count = min(first, total)
    while True:
        found = [dices(option, count) for option in alive]
        means = [float(one.mean()) for one in found]
        best = int(np.argmax(means))
        keep = [i == best or _may_win(found[best] - one) for i, one in enumerate(found)]
        if sum(keep) == 1 or count == total:
            return alive[best]
        alive = [option for option, kept in zip(alive, keep, strict=True) if kept]
        count = min(2 * count, total)


def race_bundles(
    options: Sequence[Bundle],
    inspector: Inspector,
    samples: Sequence[SyntheticDefect],
    figure: Callable[[Found, NDArray[np.bool_]], float],
    progress: Callable[[], None],
) -> Bundle:
    """The bundle, of several with other settings of the same files, of the largest mean figure.

    Args:
        inspector: searches with each of them, and is left with the one returned.
        figure: of what was found and the true mask. progress: called after every search.
    """
    found: list[list[float]] = [[] for _ in options]

    def figures(option: int, count: int) -> NDArray[np.float64]:
        inspector.adopt(options[option])
        for index in range(len(found[option]), count):
            sample = samples[index]
            found[option].append(figure(inspector.search(sample.image), sample.mask))
            progress()
        return np.array(found[option])

    chosen = options[race(range(len(options)), figures, len(samples))]
    inspector.adopt(chosen)
    return chosen


def _may_win(gap: NDArray[np.float64]) -> bool:
    """Whether the mean gap is within two standard errors of nothing."""
    return bool(gap.mean() <= _STANDARD_ERRORS * gap.std() / np.sqrt(len(gap)))
