"""Further terms of the reconstruction loss: discriminator, features, latent prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unblemish.runtime.backends.protocol import Pair
from unblemish.runtime.solvers.protocol import Double, Float


class ImageTerm(Protocol):
    """A term in the generated image."""

    @property
    def weight(self) -> float:
        """Of the term in the objective."""

    def add(self, x: Float, g: Float, mask: Float, *, cotangent: Float, value: Double) -> None:
        """Add its value (B,) and its derivative with respect to g (B, C, h, w)."""


@dataclass(frozen=True)
class DiscriminatorTerm:
    """weight * mean softplus(-D(g)): what the discriminator does not believe costs.

    softplus(-t) = -log sigmoid(t) is bounded below, and for a critic's large negative scores it is
    the -D(g) of Wasserstein training. Source: seed 000, appendix D.1 (weight 0.1).
    """

    pair: Pair
    weight: float

    def add(self, x: Float, g: Float, mask: Float, *, cotangent: Float, value: Double) -> None:
        """See `ImageTerm`."""
        entry, out = self.pair.inputs[0].name, self.pair.outputs[0].name
        logit = self.pair.forward({entry: g})[out]
        each = logit.reshape(len(g), -1)
        value += self.weight * np.logaddexp(0.0, -each.astype(np.float64)).mean(axis=1)
        slope = -self.weight / each.shape[1] / (1.0 + np.exp(np.clip(logit, -80, 80)))
        cotangent += self.pair.backward({out: slope.astype(np.float32)})[entry]


@dataclass(frozen=True)
class FeatureTerm:
    """weight * mean over every output of (phi((1-M) g) - phi((1-M) x))^2, the mask held fixed.

    Source: seed 000, eq. 3 with L_rec a perceptual loss (section 3.3).
    """

    pair: Pair
    weight: float

    def add(self, x: Float, g: Float, mask: Float, *, cotangent: Float, value: Double) -> None:
        """See `ImageTerm`."""
        keep = 1.0 - mask
        entry = self.pair.inputs[0].name
        wanted = self.pair.forward({entry: _float32(keep * x)})
        target = {name: array.copy() for name, array in wanted.items()}
        found = self.pair.forward({entry: _float32(keep * g)})
        slopes = {}
        for name, array in found.items():
            difference = array - target[name]
            size = difference[0].size
            flat = difference.reshape(len(g), -1).astype(np.float64)
            value += self.weight / size * np.einsum("bn,bn->b", flat, flat)
            slopes[name] = _float32(2 * self.weight / size * difference)
        cotangent += keep * self.pair.backward(slopes)[entry]


def add_latent_prior(z: Float, weight: float, *, gradient: Float, value: Double) -> None:
    """Add weight * mean z^2 per row and its gradient, in place."""
    value += weight * np.square(z, dtype=np.float64).mean(axis=1)
    gradient += np.float32(2 * weight / z.shape[1]) * z


def _float32(array: Float) -> Float:
    return np.ascontiguousarray(array, np.float32)
