"""What a search found, before any threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.inspection import Status


@dataclass(frozen=True)
class Found:
    """The result of searching one frame; every array is a copy that the caller owns.

    Args:
        restored: nearest normal image, native geometry, dtype and range of the frame; (H, W) for a
            grey model, (H, W, 3) for a colour one.
        score: (H, W) float32, root mean square over the channels of frame - restored (of its sign
            that counts, see `RgiSettings.polarity`), model intensity.
        mask: (H, W) float32, the mask M of the method brought to native geometry, in [0, 1].
        z: latents, (tiles, n) float32.
        status: of the tile that fared worst; `steps`: of the tile that took longest.
        objective: mean over the tiles, at the target lambda.
        trace: objective by step, mean over the tiles.
        timings: stage -> milliseconds.
        evidence: image score found apart from the score map (a detector's own), or None where the
            largest value of the map is the image score.
        kept_plain: regions whose refinement was judged worse than the detector's own outline.
    """

    restored: NDArray[Any]
    score: NDArray[np.float32]
    mask: NDArray[np.float32]
    z: NDArray[np.float32]
    status: Status
    steps: int
    objective: float
    trace: tuple[float, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    evidence: float | None = None
    kept_plain: int = 0
