"""What a detector is to the search, and what its scores are to the refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.backends.protocol import Pair, Program
from unblemish.runtime.crops import Size
from unblemish.runtime.solvers.protocol import Float

Cells = NDArray[np.int32]

IMAGE, FEATURES = "image", "features"


class CellScorer(Protocol):
    """Anomaly scores s of chosen cells as a function of their features, and the slope of s."""

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """Score the cells it was made for.

        Args:
            features: (B, L, c) float32.
            cotangent: out, (B, L, c): d s / d features; 0 for cells that do not count.
        Returns: s, (B, L) float32, a squared distance; 0 for cells that do not count.
        """


class CellModel(Protocol):
    """What was learned of normal features."""

    def scores(self, features: Float) -> Float:
        """Squared distances of all cells, (B, h, w) float32, of features (B, h, w, c)."""

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """Squared distances (B, L) float32 of features (B, L, c) at places cells (L,), exactly."""

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """Prepare the scores of some cells.

        Args:
            features: (B, L, c), where the search starts (PatchCore takes its candidates there).
            cells: (B, L) number of each cell's place in the model image, row by row; -1 for cells
                that do not count.
        """


@dataclass(frozen=True)
class FeaturePrograms:
    """The graphs of a detector: all features, and features with their gradient."""

    plain: Program
    pair: Pair

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(height, width) of images that the engines were built for; () where they take all."""
        built = [getattr(one, "image_sizes", ()) for one in (self.plain, self.pair)]
        limits = [sizes for sizes in built if sizes]
        return tuple(s for s in limits[0] if s in limits[-1]) if limits else ()
