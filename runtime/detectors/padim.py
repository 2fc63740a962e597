"""PaDiM: squared Mahalanobis distance to the Gaussian of the place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float

_BLOCK = 512  # cells whose whitening is unpacked at once


@dataclass(frozen=True)
class Padim:
    """s = ||W (f - mean)||^2 with one mean and one packed lower triangular W per place.

    Args:
        mean: (L, c) float32. whitening: (L, c (c + 1) / 2) float32, rows of W behind each other.
    Source: seed 003, eq. (7).
    """

    mean: Float
    whitening: Float

    def scores(self, features: Float) -> Float:
        """See `CellModel`."""
        batch, height, width, channels = features.shape
        if (height * width, channels) != self.mean.shape:
            raise ShapeError(
                f"PaDiM learned {self.mean.shape[0]} places of {self.mean.shape[1]} channels; the "
                f"image gives {height * width} of {channels}. Fit the bundle again."
            )
        flat = features.reshape(batch, -1, channels)
        out = np.empty((batch, height * width), np.float32)
        for first in range(0, height * width, _BLOCK):
            part = slice(first, first + _BLOCK)
            w = self._unpacked(np.arange(*part.indices(height * width), dtype=np.intp))
            d = np.ascontiguousarray((flat[:, part] - self.mean[part]).transpose(1, 2, 0))
            out[:, part] = np.square(w @ d).sum(axis=1).T
        return out.reshape(batch, height, width)

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`."""
        w = self._unpacked(cells)
        d = np.ascontiguousarray((features - self.mean[cells]).transpose(1, 2, 0))
        return np.asarray(np.square(w @ d).sum(axis=1).T, np.float32)

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`. The places do not depend on the features."""
        used = np.unique(cells[cells >= 0]).astype(np.intp)
        row = np.zeros(len(self.mean), np.intp)
        row[used] = np.arange(len(used), dtype=np.intp)
        w = self._unpacked(used)
        precision = w.transpose(0, 2, 1) @ w
        at = row[np.maximum(cells, 0)]
        return PadimScorer(self.mean[used], precision, at, cells >= 0)

    def _unpacked(self, places: NDArray[np.signedinteger[Any]]) -> Float:
        channels = self.mean.shape[1]
        w = np.zeros((len(places), channels, channels), np.float32)
        packed, first = self.whitening[places], 0
        for row in range(channels):  # ten times as fast as one assignment by indices
            w[:, row, : row + 1] = packed[:, first : first + row + 1]
            first += row + 1
        return w


@dataclass(frozen=True)
class PadimScorer:
    """Scores of fixed places; see `CellScorer`.

    Args:
        mean: (P, c). precision: (P, c, c), W^T W. place: (B, L) row in both. counts: (B, L).
    """

    mean: Float
    precision: Float
    place: NDArray[np.intp]
    counts: NDArray[np.bool_]

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s = d^T P d and d s / d f = 2 P d."""
        d = features - self.mean[self.place]
        np.matmul(self.precision[self.place], d[..., None], out=cotangent[..., None])
        cotangent[~self.counts] = 0
        scores = np.einsum("blc,blc->bl", d, cotangent)
        cotangent *= 2
        return np.asarray(scores, np.float32)
