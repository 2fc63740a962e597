"""PatchCore: squared distance to the nearest of the normal features kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float

_BLOCK = 256  # queries at once: their products with the bank stay within the caches


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

    @cached_property
    def _norms(self) -> Float:
        return np.asarray(np.einsum("nc,nc->n", self.bank, self.bank), np.float32)

    def scores(self, features: Float) -> Float:
        """See `CellModel`; over the whole bank, exactly."""
        channels = features.shape[3]
        if channels != self.bank.shape[1]:
            raise ShapeError(
                f"the bank holds features of {self.bank.shape[1]} channels; the image gives "
                f"{channels}. Fit the bundle again."
            )
        queries = features.reshape(-1, channels)
        out = np.empty(len(queries), np.float32)
        for first in range(0, len(queries), _BLOCK):
            q = queries[first : first + _BLOCK]
            nearest = self.bank[self._ranking(q).argmin(axis=1)]
            out[first : first + _BLOCK] = np.square(q - nearest).sum(axis=1)
        return out.reshape(features.shape[:3])

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`; places do not matter."""
        return self.scores(features[:, :, None])[:, :, 0]

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`; the candidates are the nearest of `features`."""
        batch, length, channels = features.shape
        count = min(self.candidates, len(self.bank))
        queries = features.reshape(-1, channels)
        chosen = np.empty((len(queries), count), np.int32)
        for first in range(0, len(queries), _BLOCK):
            ranking = self._ranking(queries[first : first + _BLOCK])
            if count < len(self.bank):
                part = np.argpartition(ranking, count - 1, axis=1)[:, :count]
            else:
                part = np.broadcast_to(np.arange(count), ranking.shape)
            chosen[first : first + _BLOCK] = part
        return PatchCoreScorer(self.bank, chosen.reshape(batch, length, count), cells >= 0)

    def _ranking(self, queries: Float) -> Float:
        """||m||^2 - 2 q m: as the distance, but for what all m have in common."""
        ranking = queries @ self.bank.T
        ranking *= -2
        ranking += self._norms
        return np.asarray(ranking)


@dataclass(frozen=True)
class PatchCoreScorer:
    """Scores by candidates; see `CellScorer`. chosen: (B, L, k) rows of the bank."""

    bank: Float
    chosen: NDArray[np.int32]
    counts: NDArray[np.bool_]

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s = min ||f - m||^2 and d s / d f = 2 (f - nearest)."""
        scores = np.zeros(self.counts.shape, np.float32)
        cotangent[...] = 0
        for place in zip(*np.nonzero(self.counts), strict=True):
            d = features[place] - self.bank[self.chosen[place]]
            distances = np.einsum("kc,kc->k", d, d)
            nearest = int(distances.argmin())
            scores[place] = distances[nearest]
            cotangent[place] = 2 * d[nearest]
        return scores
