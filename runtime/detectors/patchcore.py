"""PatchCore: squared distance to the nearest of the normal features kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float

Int = NDArray[np.int32]


@dataclass(frozen=True)
class PatchCore:
    """s = min over the bank of ||f - m||^2.

    Args:
        bank: (N, c) float32.
        candidates: how many nearest ones a scorer keeps, eq. (5).
    Source: seed 003, eqs. (4) and (5).
    """

    bank: Float
    candidates: int = 50
    kernels: Kernels = field(default_factory=default_kernels, repr=False, compare=False)

    @cached_property
    def norms(self) -> Float:
        """||m||^2 of every row of the bank."""
        return np.asarray(np.einsum("nc,nc->n", self.bank, self.bank), np.float32)

    def scores(self, features: Float) -> Float:
        """See `CellModel`; over the whole bank, exactly."""
        channels = features.shape[3]
        if channels != self.bank.shape[1]:
            raise ShapeError(
                f"the bank holds features of {self.bank.shape[1]} channels; the image gives "
                f"{channels}. Fit the bundle again."
            )
        return self._nearest(features.reshape(-1, channels), 1)[1].reshape(features.shape[:3])

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`; places do not matter."""
        return self.scores(features[:, :, None])[:, :, 0]

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`; the candidates are the nearest of `features`."""
        counts = cells >= 0
        count = min(self.candidates, len(self.bank))
        chosen = np.full((*cells.shape, count), -1, np.int32)
        if counts.any():
            chosen[counts] = self._nearest(features[counts], count)[0]
        return PatchCoreScorer(self.bank, chosen, self.kernels)

    def _nearest(self, queries: Float, count: int) -> tuple[Int, Float]:
        """Rows of the bank nearest to queries (M, c), and their squared distances, (M, count)."""
        index = np.empty((len(queries), count), np.int32)
        distances = np.empty(index.shape, np.float32)
        self.kernels.top_candidates(
            np.ascontiguousarray(queries),
            self.bank,
            index=index,
            distances=distances,
            norms=self.norms,
        )
        return index, distances


@dataclass(frozen=True)
class PatchCoreScorer:
    """Scores by candidates; see `CellScorer`. chosen: (B, L, k) rows of the bank, -1 for none."""

    bank: Float
    chosen: Int
    kernels: Kernels

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s = min ||f - m||^2 and d s / d f = 2 (f - nearest)."""
        scores = np.empty(self.chosen.shape[:2], np.float32)
        self.kernels.nearest_candidate(
            np.ascontiguousarray(features),
            self.bank,
            self.chosen,
            scores=scores,
            cotangent=cotangent,
            chosen=np.empty(scores.shape, np.int32),
        )
        return scores
