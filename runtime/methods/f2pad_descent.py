"""The descent of a batch of regions on the pixels, eqs. (8)-(15)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.searches import F2padSettings
from unblemish.kernels.api import Kernels
from unblemish.runtime.detectors.crops import CropScores
from unblemish.runtime.methods.decomposition import Decomposition, Prior, Weights
from unblemish.runtime.methods.f2pad_batch import Batch
from unblemish.runtime.methods.f2pad_plan import Plan
from unblemish.runtime.solvers.adan import Adan, Pixels
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome, run
from unblemish.runtime.solvers.protocol import Double, Float

Byte = NDArray[np.uint8]


class Descent(Protocol):
    """The objective of one batch, to be looked at and to be minimised."""

    def scored(self, n: Float) -> tuple[Double, Float]:
        """l_n (N,) of windows n (N, C, H, W), and the scores (N, h, w) of their cells; copies."""

    def descend(
        self, weights: Weights, free: Byte, start: Float, limits: Limits, clock: Clock
    ) -> Outcome:
        """Minimise F from `start`, moving the free pixels (N, 1, H, W)."""


class HostDescent:
    """See `Descent`.

    Args:
        scores: l_n of the batch's crops. prior: of normal pixels, in units.
    """

    def __init__(
        self,
        kernels: Kernels,
        settings: F2padSettings,
        plan: Plan,
        prior: Prior | None,
        batch: Batch,
        scores: CropScores,
    ) -> None:
        self._kernels, self._settings, self._plan, self._prior = kernels, settings, plan, prior
        self._batch, self._scores = batch, scores
        nothing = np.zeros(len(batch.x), np.float32)
        unweighted = Weights(nothing, nothing, nothing[None], settings.epsilon)
        self._plain = self._objective(unweighted, batch.free)

    def scored(self, n: Float) -> tuple[Double, Float]:
        """See `Descent`."""
        value, _ = self._plain.feature_part(n, np.arange(len(n)))
        return value.copy(), self._scores.cells.copy()

    def descend(
        self, weights: Weights, free: Byte, start: Float, limits: Limits, clock: Clock
    ) -> Outcome:
        """See `Descent`."""
        settings, plan = self._settings, self._plan
        pixels = pixels_of(self._batch, free, settings, plan)
        solver = Adan(self._kernels, pixels, plan.sharing(settings), plan.floor)
        return run(self._objective(weights, free), solver, (start,), limits, clock=clock)

    def _objective(self, weights: Weights, free: Byte) -> Decomposition:
        batch = self._batch
        return Decomposition(
            self._kernels, self._scores, batch.view, batch.x, free, weights, self._prior,
            everywhere=self._plan.whole,
        )  # fmt: skip


def pixels_of(batch: Batch, free: Byte, settings: F2padSettings, plan: Plan) -> Pixels:
    """What Adan must know of the pixels of a batch; sums over native pixels scale the gradient."""
    area = float(batch.area.mean())
    rate = np.full(len(batch.x), plan.rate, np.float32)
    return Pixels(batch.x, free, rate, settings.clip * area, 0.0, 1.0 / settings.unit)
