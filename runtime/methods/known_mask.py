"""Inversion where the mask is known: only what lies outside of the hole is compared."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Targets
from unblemish.runtime.methods.terms import add_latent_prior
from unblemish.runtime.solvers.protocol import Bool, Evaluation, Index, Variables


@dataclass
class KnownMask:
    """Mean of ((1 - M) (x - G(z)))^2 over the known elements, M given; and the prior of z.

    Args:
        targets: the inspected images. free: (T, 1, h, w), M; the hole of each of them.
        latent_weight: weight of mean z^2.
    Source: seed 000, eq. 3 without the search for M.
    """

    engine: GeneratorEngine
    targets: Targets
    free: Bool
    latent_weight: float = 0.0
    stages: int = field(default=1, init=False)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`; the variables are (z,)."""
        (z,) = query
        g = self.engine.forward(z)
        began = time.perf_counter()
        known = (~self.free[self.targets.of_item[items]]).astype(np.float32)
        apart = (g - self.targets.rows(items)) * known
        scale = 1 / np.maximum(known.sum(axis=(1, 2, 3), dtype=np.float64) * g.shape[1], 1)
        value = scale * np.square(apart).sum(axis=(1, 2, 3), dtype=np.float64)
        cotangent = np.asarray(2 * scale[:, None, None, None] * apart, np.float32)
        self.engine.watch.add("kernels", began)
        gradient = self.engine.backward(cotangent)[0]
        if self.latent_weight:
            gradient = gradient.copy()
            add_latent_prior(z, self.latent_weight, gradient=gradient, value=value)
        return Evaluation(value, (gradient,))
