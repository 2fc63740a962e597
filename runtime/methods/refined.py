"""What a refinement gives back for one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.inspection import Status
from unblemish.runtime.solvers.protocol import Float

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Refined:
    """Frame = normal image + anomalous part, at native resolution.

    Args:
        restored: (H, W, C) float32 in [0, 1]: the normal image after re-estimation, the frame
            itself outside `mask` and outside `kept`.
        residual: (H, W) float32 in [0, 1] intensity: root mean square over the channels of
            x - n where the search ended, 0 where nothing was searched. Where the plain outline was
            kept, the plain map, scaled so that its own threshold lies at the tolerance.
        mask: (H, W): residual above the tolerance, cleaned; the plain outline where it was kept.
        free: (H, W): the pixels that were searched.
        strange: (H, W) float32: what was searched for, 1 at its threshold; see `F2pad`.
        kept: (H, W): the parts whose refinement was not trusted.
        regions: connected parts that were searched; kept_plain: how many of them kept the plain
            outline (the others of `kept` are as normal as normal frames).
        status: of the region that fared worst; PLAIN where nothing was to be searched.
        steps: of the region that took longest.
        objective: sum over the regions; trace: the same by step.
        seconds: stage -> time.
    """

    restored: Float
    residual: Float
    mask: Bool
    free: Bool
    strange: Float
    kept: Bool
    regions: int
    kept_plain: int
    status: Status
    steps: int
    objective: float
    trace: tuple[float, ...]
    seconds: dict[str, float]


def unrefined(restored: Float, score: Float) -> Refined:
    """A result without any search. restored: (H, W, C) in [0, 1]. score: (H, W)."""
    nothing = np.zeros(score.shape, np.bool_)
    return Refined(
        restored, score, score > 0, nothing, np.zeros_like(score), nothing, 0, 0,
        Status.PLAIN, 0, 0.0, (), {},
    )  # fmt: skip
