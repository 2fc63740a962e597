"""The objective over the latent alone, the mask being put in closed form."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.losses import ImageLoss
from unblemish.runtime.methods.terms import ImageTerm, add_latent_prior
from unblemish.runtime.solvers.protocol import Double, Evaluation, Float, Index, Variables
from unblemish.runtime.workspace import Workspace


@dataclass
class Targets:
    """Inspected images (T, C, h, w), and which of them each item looks at, (N,)."""

    images: Float
    of_item: Index
    _rows: Index | None = field(default=None, init=False, repr=False)
    _gathered: Float | None = field(default=None, init=False, repr=False)

    def rows(self, items: Index) -> Float:
        """Images of these items, gathered again only when the items change."""
        if self._gathered is None or self._rows is None or not np.array_equal(self._rows, items):
            self._rows = items.copy()
            wanted = self.of_item[items]
            plain = np.array_equal(wanted, np.arange(len(self.images)))
            self._gathered = self.images if plain else self.images[wanted]
        return self._gathered


@dataclass
class Inversion:
    """min over z of loss(x, G(z); lam) + further terms, for a batch of items.

    Args:
        engine: the generator.
        loss: loss on images with the best mask put in; `scale` is 1/(C h w), a mean.
        targets: the inspected images.
        ladder: lam of each stage and item, (stages, N).
        shared: one mask for all channels.
        latent_weight: weight of mean z^2.
    """

    engine: GeneratorEngine
    loss: ImageLoss
    targets: Targets
    ladder: Float
    shared: bool = True
    terms: tuple[ImageTerm, ...] = ()
    latent_weight: float = 0.0
    workspace: Workspace = field(default_factory=Workspace)

    @property
    def stages(self) -> int:
        """Stages of the schedule."""
        return len(self.ladder)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`; the variables are (z,)."""
        (z,) = query
        g = self.engine.forward(z)
        x = self.targets.rows(items)
        lam = np.ascontiguousarray(self.ladder[stage, items], np.float32)
        value, _, cotangent = self.image_part(x, g, lam)
        grad, _ = self.engine.backward(cotangent)
        return Evaluation(value, (self.with_prior(z, grad, value),))

    def with_prior(self, z: Float, gradient: Float, value: Double) -> Float:
        """Add the latent prior to `value` in place; returns the gradient with it."""
        if not self.latent_weight:
            return gradient
        total = gradient.copy()
        add_latent_prior(z, self.latent_weight, gradient=total, value=value)
        return total

    def image_part(self, x: Float, g: Float, lam: Float) -> tuple[Double, Float, Float]:
        """Value (B,), mask and cotangent of all terms in the image; workspace memory."""
        began = time.perf_counter()
        rows, channels, height, width = g.shape
        get = self.workspace.array
        mask = get("mask", (rows, 1 if self.shared else channels, height, width))
        cotangent = get("cotangent", g.shape)
        value = get("value", (rows,), np.float64)
        scale = np.full(rows, 1.0 / g[0].size, np.float32)
        self.loss(x, g, lam, scale, mask=mask, cotangent=cotangent, objective=value)
        began = self.engine.watch.add("kernels", began)
        if self.terms:
            for term in self.terms:
                term.add(x, g, mask, cotangent=cotangent, value=value)
            self.engine.watch.add("terms", began)
        return value, mask, cotangent
