"""AnoGAN: beside the image, what the discriminator sees in it must come near."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from unblemish.kernels.api import Kernels
from unblemish.runtime.backends.protocol import Pair
from unblemish.runtime.solvers.protocol import Double, Float
from unblemish.runtime.workspace import Workspace

PAPER_STEPS = 500  # Schlegl et al. 2017, section 3


@dataclass
class FeatureDistance:
    """weight / (C h w) |f_D(x) - f_D(g)|_1 over every output of f_D, an `ImageTerm`.

    With the mean absolute residual beside it this is eq. (2) divided by the C h w elements of an
    image, which moves no minimum. The features of x are computed once: x must stay as it is.

    Args:
        pair: f_D, a layer of the discriminator. weight: lambda of eq. (2).
    Source: seed 002, eq. (2).
    """

    pair: Pair
    kernels: Kernels
    weight: float
    _space: Workspace = field(default_factory=Workspace, init=False, repr=False)
    _seen: Float | None = field(default=None, init=False, repr=False)
    _targets: dict[str, Float] = field(default_factory=dict, init=False, repr=False)

    def add(self, x: Float, g: Float, mask: Float, *, cotangent: Float, value: Double) -> None:
        """See `ImageTerm`; the mask plays no part."""
        entry, get = self.pair.inputs[0].name, self._space.array
        targets = self._of(x, entry)
        scale = np.full(len(g), self.weight / g[0].size, np.float32)
        part, slopes = get("value", (len(g),), np.float64), {}
        for name, array in self.pair.forward({entry: g}).items():
            found = _as_rows(array)
            slope = get(name, found.shape)
            self.kernels.residual_l1(targets[name], found, scale, cotangent=slope, objective=part)
            slopes[name] = slope.reshape(array.shape)
            value += part
        cotangent += self.pair.backward(slopes)[entry]

    def _of(self, x: Float, entry: str) -> Mapping[str, Float]:
        """Features of the inspected images, (B, 1, 1, n) each."""
        if self._seen is not x:
            found = self.pair.forward({entry: np.ascontiguousarray(x)})
            self._targets = {name: _as_rows(array).copy() for name, array in found.items()}
            self._seen = x
        return self._targets


def _as_rows(array: Float) -> Float:
    return np.ascontiguousarray(array, np.float32).reshape(len(array), 1, 1, -1)
