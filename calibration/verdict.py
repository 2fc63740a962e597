"""What verdicts go by: the largest value of the score map, or what the search gives beside it.

Which of the two tells defects from normal parts is not known beforehand, so synthetic defects say.
On magnetic tiles PaDiM's own peak does, PatchCore's does not: there normal frames reach as high as
most defects, while the refined maps still differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.metrics import image_auroc
from unblemish.calibration.scores import Score
from unblemish.calibration.thresholds import reject_threshold
from unblemish.runtime.decision import image_score, smooth

IMAGE_SIGMAS = (0.0, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)  # px of frames up to 400 px
_CLEARLY = 0.05  # of the merit: what the map must add to the evidence


@dataclass(frozen=True)
class Judge:
    """Image scores, and how they come about.

    Args:
        normals, defects: (N,) and (M,) image scores.
        sigma: Gaussian on the map before its peak, native px; None for the evidence.
    """

    normals: NDArray[np.float64]
    defects: NDArray[np.float64]
    sigma: float | None = None

    def merit(self, false_reject: float) -> float:
        """The image AUROC, which knows no threshold, and the share of the defects rejected."""
        threshold = reject_threshold(self.normals, false_reject).value
        caught = float((self.defects > threshold).mean())
        return (image_auroc(self.normals, self.defects) or 0.0) + caught


def choose_judge(maps: Sequence[Judge], evidence: Judge | None, false_reject: float) -> Judge:
    """The best of the maps, the first among equals; the evidence unless they are clearly better."""
    best = max(maps, key=lambda judge: judge.merit(false_reject))
    if evidence is None:
        return best
    clearly = best.merit(false_reject) > evidence.merit(false_reject) + _CLEARLY
    return best if clearly else evidence


def peaks(weighted: Score, sigmas: Sequence[float]) -> list[float]:
    """The image scores of a map by smoothing."""
    return [image_score(smooth(weighted, sigma)) for sigma in sigmas]
