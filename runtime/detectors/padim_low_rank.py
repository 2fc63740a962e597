"""PaDiM with a few directions per place: squared Mahalanobis distance by an inverse of low rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.detectors.padim import check_grid
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float


@dataclass(frozen=True)
class LowRankPadim:
    """s = p (||d||^2 - ||B^T d||^2), d = f - mean, with one mean, B and p per place.

    Args:
        mean: (L, c) float32. basis: (L, c, r) float32, B. inverse_variance: (L,) float32, p.
    Source: seed 003, eq. (7), with the inverse covariance p (I - B B^T).
    """

    mean: Float
    basis: Float
    inverse_variance: Float
    kernels: Kernels = field(default_factory=default_kernels, repr=False, compare=False)

    def scores(self, features: Float) -> Float:
        """See `CellModel`."""
        flat = check_grid(features, self.mean)
        cells = np.arange(flat.shape[1], dtype=np.int32)
        return self.scores_at(flat, cells).reshape(features.shape[:3])

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`."""
        scores = np.empty(features.shape[:2], np.float32)
        self.kernels.mahalanobis_low_rank(
            np.ascontiguousarray(features),
            self.mean,
            self.basis,
            self.inverse_variance,
            np.ascontiguousarray(np.broadcast_to(cells, scores.shape)),
            scores=scores,
            cotangent=None,
        )
        return scores

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`. The places do not depend on the features."""
        return LowRankScorer(self, np.ascontiguousarray(cells))


@dataclass(frozen=True)
class LowRankScorer:
    """Scores of fixed places; see `CellScorer`. cells: (B, L)."""

    model: LowRankPadim
    cells: Cells

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s = p (d - B B^T d) . d and d s / d f = 2 p (d - B B^T d)."""
        scores = np.empty(self.cells.shape, np.float32)
        model = self.model
        model.kernels.mahalanobis_low_rank(
            np.ascontiguousarray(features),
            model.mean,
            model.basis,
            model.inverse_variance,
            self.cells,
            scores=scores,
            cotangent=cotangent,
        )
        return scores
