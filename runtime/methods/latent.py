"""The energy in the latent: the image nearest to the frame that the decoder makes of a code."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from unblemish.bundle.searches import EnergySettings
from unblemish.kernels.api import Kernels
from unblemish.runtime.methods.energy import Projected
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.rgi import RgiMethod
from unblemish.runtime.solvers.loop import Clock, Limits
from unblemish.runtime.solvers.protocol import Double, Float

if TYPE_CHECKING:
    from unblemish.runtime.device.rgi import RgiOnDevice

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
        device: where the search runs on the GPU.
    Source: seed 002, eq. (6), which it states and does not run.
    """

    engines: CodeEngines
    kernels: Kernels
    settings: EnergySettings
    schedule: str = "fast"
    lengths: Double | None = None
    device: RgiOnDevice | None = None

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
        method = self.method(images)
        solve = method.solve if self.device is None else partial(self.device.solve, method)
        nowhere = np.zeros(len(images), np.float32)  # no mask, so no lambda of RGI
        limits = self._limits(max_steps, deadline)
        found = solve(images, start[:, None], nowhere, limits, clock=clock)
        elements = images[0].size
        return Projected(
            np.array(self.engines.decoder.forward(found.z)), elements * found.value,
            found.status, found.steps, tuple(elements * trace for trace in found.trace),
            codes=found.z,
        )  # fmt: skip

    def at(self, lam: float | None) -> LatentMethod:
        """The same with another lambda; None for the bundle's."""
        if lam is None:
            return self
        return replace(self, settings=self.settings.model_copy(update={"latent_lam": lam}))

    def method(self, images: Float) -> RgiMethod:
        """Eq. (6) divided by the C h w elements of an image, which moves no minimum."""
        weight = self.settings.latent_lam * self.engines.size / (2 * images[0].size)
        return RgiMethod(
            self.engines.decoder, self.kernels, norm="l1", masked=False, schedule=self.schedule,
            latent_weight=weight, lengths=self.lengths,
        )  # fmt: skip

    def _limits(self, max_steps: int | None, deadline: float | None) -> Limits:
        steps = self.settings.max_steps if self.schedule == "paper" else _FAST_STEPS
        return Limits(max_steps or steps, self.settings.tolerance, deadline=deadline)
