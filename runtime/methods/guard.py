"""Whether a refinement is worse than the detector's own outline, judged without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """When the plain outline is kept.

    Args:
        least: share of the strong core of the plain mask that the mask must hold.
        lowered: share of the anomaly score that the restored part must have lost.
        inside: share of the mask that must lie in the plain mask.
    """

    least: float = 0.05
    lowered: float = 0.1
    inside: float = 0.2


def is_worse(
    mask: Bool, plain: Bool, core: Bool, before: float, after: float, rules: Rules
) -> bool:
    """Whether a part collapsed, left what was strange as it was, or strayed.

    Args:
        mask: the part's pixels found anomalous. plain: its pixels above the detector's threshold.
        core: those far above it.
        before, after: anomaly scores of its cells, in the frame and in the restored image.
    """
    found = int(mask.sum())
    if not found or not np.isfinite(after):
        return True
    collapsed = int((mask & core).sum()) < rules.least * int(core.sum())
    unmoved = after > (1 - rules.lowered) * before
    strayed = int((mask & plain).sum()) < rules.inside * found
    return collapsed or unmoved or strayed


def strong_core(plain_map: NDArray[np.float32], plain: Bool) -> Bool:
    """The pixels of the plain mask in the upper half of its range of scores."""
    if not plain.any():
        return plain
    values = plain_map[plain]
    level = 0.5 * (float(values.min()) + float(values.max()))
    core: Bool = plain & (plain_map >= level)
    return core
