"""PaDiM: squared Mahalanobis distance to the Gaussian of the place."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float


@dataclass(frozen=True)
class Padim:
    """s = ||W (f - mean)||^2 with one mean and one packed lower triangular W per place.

    Args:
        mean: (L, c) float32. whitening: (L, c (c + 1) / 2) float32, rows of W behind each other.
    Source: seed 003, eq. (7).
    """

    mean: Float
    whitening: Float
    kernels: Kernels = field(default_factory=default_kernels, repr=False, compare=False)

    def scores(self, features: Float) -> Float:
        """See `CellModel`."""
        flat = check_grid(features, self.mean)
        cells = np.arange(flat.shape[1], dtype=np.int32)
        return self.scores_at(flat, cells).reshape(features.shape[:3])

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`."""
        scores = np.empty(features.shape[:2], np.float32)
        self.kernels.mahalanobis(
            np.ascontiguousarray(features),
            self.mean,
            self.whitening,
            np.ascontiguousarray(np.broadcast_to(cells, scores.shape)),
            scores=scores,
            cotangent=None,
        )
        return scores

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`. The places do not depend on the features."""
        return PadimScorer(self, np.ascontiguousarray(cells))


@dataclass(frozen=True)
class PadimScorer:
    """Scores of fixed places; see `CellScorer`. cells: (B, L)."""

    model: Padim
    cells: Cells

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s = ||W d||^2 and d s / d f = 2 W^T W d."""
        scores = np.empty(self.cells.shape, np.float32)
        model = self.model
        model.kernels.mahalanobis(
            np.ascontiguousarray(features),
            model.mean,
            model.whitening,
            self.cells,
            scores=scores,
            cotangent=cotangent,
        )
        return scores


def check_grid(features: Float, mean: Float) -> Float:
    """Features (B, h, w, c) as (B, h w, c). Raises: ShapeError unless `mean` is (h w, c)."""
    batch, height, width, channels = features.shape
    if (height * width, channels) != mean.shape:
        raise ShapeError(
            f"PaDiM learned {mean.shape[0]} places of {mean.shape[1]} channels; the "
            f"image gives {height * width} of {channels}. Fit the bundle again."
        )
    return features.reshape(batch, -1, channels)
