"""The one draw that training holds back by, and calibration finds the held-back images with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def draw(paths: Sequence[Path], share: float, seed: int) -> list[Path]:
    """A random `share` of readable images in random order, fixed by their paths and the seed."""
    order = np.random.default_rng([seed, len(paths)]).permutation(len(paths))
    return [paths[index] for index in order[: round(share * len(paths))]]
