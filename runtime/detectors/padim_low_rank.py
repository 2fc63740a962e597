"""PaDiM with a few directions per place: squared Mahalanobis distance by an inverse of low rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float

_BLOCK = 512  # cells whose directions are read at once


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

    def scores(self, features: Float) -> Float:
        """See `CellModel`."""
        batch, height, width, channels = features.shape
        if (height * width, channels) != self.mean.shape:
            raise ShapeError(
                f"PaDiM learned {self.mean.shape[0]} places of {self.mean.shape[1]} channels; the "
                f"image gives {height * width} of {channels}. Fit the bundle again."
            )
        cells = np.arange(height * width, dtype=np.int32)
        return self.scores_at(features.reshape(batch, -1, channels), cells).reshape(
            batch, height, width
        )

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`."""
        out = np.empty(features.shape[:2], np.float32)
        for first in range(0, len(cells), _BLOCK):
            part = slice(first, first + _BLOCK)
            here = cells[part]
            d = features[:, part] - self.mean[here]
            along = np.matmul(d.transpose(1, 0, 2), self.basis[here])  # (block, B, r)
            rest = np.square(d).sum(axis=2) - np.square(along).sum(axis=2).T
            np.multiply(rest, self.inverse_variance[here], out=out[:, part])
        return out

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`. The places do not depend on the features."""
        used = np.unique(cells[cells >= 0]).astype(np.intp)
        row = np.zeros(len(self.mean), np.intp)
        row[used] = np.arange(len(used), dtype=np.intp)
        at = row[np.maximum(cells, 0)]
        return LowRankScorer(
            self.mean[used], self.basis[used], self.inverse_variance[used], at, cells >= 0
        )


@dataclass(frozen=True)
class LowRankScorer:
    """Scores of fixed places; see `CellScorer`.

    Args:
        mean: (P, c). basis: (P, c, r). inverse_variance: (P,). place: (B, L) row in them.
        counts: (B, L).
    """

    mean: Float
    basis: Float
    inverse_variance: Float
    place: NDArray[np.intp]
    counts: NDArray[np.bool_]

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s = p (d - B B^T d) . d and d s / d f = 2 p (d - B B^T d)."""
        d = features - self.mean[self.place]
        basis = self.basis[self.place]
        along = np.matmul(basis.swapaxes(-1, -2), d[..., None])
        np.subtract(d, np.matmul(basis, along)[..., 0], out=cotangent)
        cotangent *= self.inverse_variance[self.place][..., None]
        cotangent[~self.counts] = 0
        scores = np.einsum("blc,blc->bl", d, cotangent)
        cotangent *= 2
        return np.asarray(scores, np.float32)
