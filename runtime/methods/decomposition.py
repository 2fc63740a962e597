"""The objective of F2PAD: a frame as a normal image n and an anomalous part a = x - n."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Mixture
from unblemish.kernels.api import Kernels
from unblemish.runtime.detectors.crops import CropScores
from unblemish.runtime.solvers.protocol import Double, Evaluation, Float, Index, Variables
from unblemish.runtime.workspace import Workspace

Byte = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """How the model sees the native pixels of a batch of windows.

    image(n) = image(base) + gain * A_h (n - base) A_w^T: what lies outside the windows, and what
    the geometry clips, stays as it is in `images`.

    Args:
        base: (N, C, H, W) native windows of an image, in units.
        images: (N, C, h, w) its model crops, in model intensities.
        down: (N, h, H) A_h. across: (N, W, w) A_w^T.
        gain: model intensities per unit.
    """

    base: Float
    images: Float
    down: Float
    across: Float
    gain: float

    def project(self, n: Float, items: Index, space: Workspace) -> Float:
        """Model crops (b, C, h, w) of windows n (b, C, H, W), row b being item items[b]."""
        b, c, _, _ = n.shape
        h, w = self.images.shape[2:]
        change = np.subtract(n, self.base[items], out=space.array("change", n.shape))
        half = space.array("half", (b, c, n.shape[2], w))
        np.matmul(change, self.across[items][:, None], out=half)
        out: Float = space.array("images", (b, c, h, w))
        np.matmul(self.down[items][:, None], half, out=out)
        out *= np.float32(self.gain)
        out += self.images[items]
        return out

    def pull_back(self, gradient: Float, items: Index, out: Float, space: Workspace) -> None:
        """Gradient by the model crops (b, C, h, w) to the gradient by the windows, into `out`."""
        b, c, _, w = gradient.shape
        half = space.array("back", (b, c, out.shape[2], w))
        np.matmul(self.down[items].transpose(0, 2, 1)[:, None], gradient, out=half)
        np.matmul(half, self.across[items].transpose(0, 2, 1)[:, None], out=out)
        out *= np.float32(self.gain)


@dataclass(frozen=True)
class Prior:
    """Gaussians of normal pixels, in units: means (Q, C), precisions (Q, C, C). See eq. (10).

    Args:
        level: squared distance that no normal frame's colours reach, where it is known.
    """

    means: Float
    precisions: Float
    level: float | None = None

    def distances(self, x: Float) -> Float:
        """Squared distance of every pixel of x (C, H, W) to the nearest Gaussian, (H, W)."""
        nearest = np.full(x.shape[1:], np.inf, np.float32)
        for mean, precision in zip(self.means, self.precisions, strict=True):
            d = x - mean[:, None, None]
            moved = np.tensordot(precision, d, axes=1)
            np.minimum(nearest, np.einsum("chw,chw->hw", d, moved), out=nearest)
        return nearest


@dataclass(frozen=True)
class Weights:
    """Weights of the terms, (N,) float32 each, per native pixel.

    Args:
        prior: alpha_1. variation: alpha_2. sparsity: beta by stage, (stages, N).
        epsilon: of eq. (8).
    """

    prior: Float
    variation: Float
    sparsity: Float
    epsilon: float


class Decomposition:
    """F(n) = l_n(n) + alpha_1 l_p1(n) + alpha_2 l_p2(n) + beta l_a(x - n), one item per region.

    Args:
        scores: l_n of the model crops. view: from native windows to them.
        x: (N, C, H, W) the inspected windows, in units. free: (N, 1, H, W), where n may differ.
        prior: None leaves the term out.
        everywhere: the penalties count all pixels of the window, as in the paper; otherwise the
            free ones.
    Source: seed 003, eqs. (8), (10)-(12). The sums run over native pixels; `weights` holds what
        keeps them in proportion to the cells.
    """

    def __init__(
        self,
        kernels: Kernels,
        scores: CropScores,
        view: View,
        x: Float,
        free: Byte,
        weights: Weights,
        prior: Prior | None,
        *,
        everywhere: bool = False,
    ) -> None:
        self._kernels = kernels
        self._scores = scores
        self._view = view
        self._x = x
        self._counted = np.ones_like(free) if everywhere else free
        self._weights = weights
        self._prior = prior
        self._space = Workspace()
        self._rows: Index = np.zeros(0, np.intp)
        self._taken: tuple[Float, Byte] = (x, self._counted)

    @property
    def stages(self) -> int:
        """Stages of beta."""
        return len(self._weights.sparsity)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`."""
        (n,) = query
        value, gradient = self.feature_part(n, items)
        x, counted = self._fixed(items)
        weights = self._weights
        self._kernels.total_variation(n, weights.variation[items], gradient=gradient, value=value)
        if self._prior is not None:
            self._kernels.mixture_prior(
                n,
                self._prior.means,
                self._prior.precisions,
                weights.prior[items],
                counted,
                gradient=gradient,
                value=value,
            )
        self._kernels.log_penalty(
            x,
            n,
            weights.sparsity[stage, items],
            counted,
            epsilon=weights.epsilon,
            gradient=gradient,
            value=value,
        )
        return Evaluation(value, (gradient,))

    def feature_part(self, n: Float, items: Index) -> tuple[Double, Float]:
        """l_n (b,) and its gradient by the windows; valid until the next call."""
        images = self._view.project(n, items, self._space)
        value, back = self._scores.evaluate(images, items)
        gradient: Float = self._space.array("gradient", n.shape)
        self._view.pull_back(back, items, gradient, self._space)
        return value, gradient

    def _fixed(self, items: Index) -> tuple[Float, Byte]:
        """x and counted pixels of these items, taken again only where the items changed."""
        if not np.array_equal(items, self._rows):
            self._rows = items.copy()
            self._taken = self._x[items], self._counted[items]
        return self._taken


def in_units(mixture: Mixture, unit: float = 1.0) -> Prior:
    """A mixture given in [0, 1] intensity, in units."""
    return Prior(
        np.ascontiguousarray(np.array(mixture.means, np.float32) / np.float32(unit)),
        np.ascontiguousarray(np.array(mixture.precisions, np.float32) * np.float32(unit * unit)),
        mixture.level,
    )
