"""The energy in the latent: the image nearest to the frame that the decoder makes of a code."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unblemish.bundle.searches import EnergySettings
from unblemish.kernels.api import Kernels
from unblemish.runtime.methods.energy import Projected
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.losses import image_loss
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome, run
from unblemish.runtime.solvers.protocol import Double, Float

_RATE = 0.1
_FAST_STEPS = 30  # settles within fifteen to thirty


@dataclass(frozen=True)
class CodeEngines:
    """The halves of an autoencoder apart.

    Args:
        decoder: codes (B, n) to images (B, C, h, w), and its gradient.
        encode: images to codes, of a VAE the means.
        size: n.
    """

    decoder: GeneratorEngine
    encode: Callable[[Float], Float]
    size: int


@dataclass(frozen=True)
class LatentMethod:
    """min over z of |x - Dec(z)|_1 - lam log p(z), from z_0 = Enc(x), p the standard normal.

    -log p(z) is |z|^2 / 2 and a constant that is left out. Autoencoders without a prior are given
    the same one.

    Args:
        schedule: 'paper' (Adam with rate 0.1) or 'fast' (L-BFGS in the metric of `lengths`).
        lengths: (n,) typical length of each element of the code, for the fast schedule.
    Source: seed 002, eq. (6), which it states and does not run.
    """

    engines: CodeEngines
    kernels: Kernels
    settings: EnergySettings
    schedule: str = "fast"
    lengths: Double | None = None

    def solve(
        self,
        images: Float,
        *,
        max_steps: int | None = None,
        deadline: float | None = None,
        clock: Clock = time.perf_counter,
    ) -> Projected:
        """Search the codes of a batch of images (B, C, h, w) in model intensities."""
        watch, began = self.engines.decoder.watch, time.perf_counter()
        start = self.engines.encode(images)
        watch.add("start", began)
        problem = self.problem(images)
        outcome = self._run(problem, start, max_steps, deadline, clock)
        (codes,) = outcome.best
        elements = images[0].size
        return Projected(
            np.array(self.engines.decoder.forward(codes)), elements * outcome.value,
            outcome.status, outcome.steps, tuple(elements * trace for trace in outcome.trace),
            codes=codes,
        )  # fmt: skip

    def at(self, lam: float | None) -> LatentMethod:
        """The same with another lambda; None for the bundle's."""
        if lam is None:
            return self
        return replace(self, settings=self.settings.model_copy(update={"latent_lam": lam}))

    def problem(self, images: Float) -> Inversion:
        """Eq. (6) divided by the C h w elements of an image, which moves no minimum."""
        weight = self.settings.latent_lam * self.engines.size / (2 * images[0].size)
        loss = image_loss(self.kernels, "l1", masked=False)
        targets = Targets(images, np.arange(len(images)))
        nowhere = np.zeros((1, len(images)), np.float32)  # no mask, so no lambda of RGI
        return Inversion(self.engines.decoder, loss, targets, nowhere, latent_weight=weight)

    def _run(
        self,
        problem: Inversion,
        start: Float,
        max_steps: int | None,
        deadline: float | None,
        clock: Clock,
    ) -> Outcome:
        paper = self.schedule == "paper"
        steps = max_steps or (self.settings.max_steps if paper else _FAST_STEPS)
        limits = Limits(steps, self.settings.tolerance, deadline=deadline)
        if paper:
            return run(problem, Adam(self.kernels, (_RATE,)), (start,), limits, clock=clock)
        return run(problem, Lbfgs(scale=self.lengths), (start,), limits, clock=clock)
