"""Energy projection: the nearest image that an autoencoder reconstructs well."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from unblemish.bundle.searches import EnergySettings
from unblemish.kernels.api import Kernels
from unblemish.runtime.inspection import Status
from unblemish.runtime.membrane import roughness
from unblemish.runtime.methods.autoencoder import AutoencoderEngine
from unblemish.runtime.methods.energy_scores import ScoreKind, score_maps
from unblemish.runtime.methods.reconstruction_loss import ReconstructionLoss
from unblemish.runtime.solvers.alternation import Alternation
from unblemish.runtime.solvers.blending import Blending
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome, run
from unblemish.runtime.solvers.projected_step import ProjectedStep
from unblemish.runtime.solvers.protocol import Bool, Double, Evaluation, Float, Index, Variables

# Passes of the fast schedule: later turns hardly change a score (docs/benchmarks-energy.md), while
# a hole settles within some eight.
_SEARCH_STEPS, _FILL_STEPS = 5, 20


@dataclass(frozen=True)
class Projected:
    """Where the search of every image ended.

    Args:
        images: (B, C, h, w), x_T. value: (B,) energy. steps: (B,) passes.
        trace: energy by step, one array per image.
        maps: (B, 1, h, w) anomaly maps, where they are not simply what changed.
        codes: (B, n), where the code was searched.
    """

    images: Float
    value: Double
    status: tuple[Status, ...]
    steps: Index
    trace: tuple[Double, ...]
    maps: Float | None = None
    codes: Float | None = None

    @staticmethod
    def of(outcome: Outcome) -> Projected:
        """What a search of the images themselves found."""
        return Projected(
            outcome.best[0], outcome.value, outcome.status, outcome.steps, outcome.trace
        )

    @staticmethod
    def joined(parts: Sequence[Projected]) -> Projected:
        """Put batches behind each other."""
        maps = [p.maps for p in parts if p.maps is not None]
        codes = [p.codes for p in parts if p.codes is not None]
        return Projected(
            np.concatenate([p.images for p in parts]),
            np.concatenate([p.value for p in parts]),
            tuple(s for p in parts for s in p.status),
            np.concatenate([p.steps for p in parts]),
            tuple(t for p in parts for t in p.trace),
            np.concatenate(maps) if maps else None,
            np.concatenate(codes) if codes else None,
        )


@dataclass
class Energy:
    """E(x) = L_r(x) + lam |x - x_0|_1 over images near the inspected ones, (N, C, h, w).

    Args:
        slope: whether the gradient is wanted; without it a pass forward is enough.
    Source: seed 002, eq. (4).
    """

    engine: AutoencoderEngine
    loss: ReconstructionLoss
    lam: float
    images: Float
    slope: bool
    stages: int = field(default=1, init=False)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`; the gradient is what the solvers of this method ask for."""
        (x,) = query
        made = self.engine.forward(x)
        began = time.perf_counter()
        away = np.abs(x - self.images[items]).sum(axis=(1, 2, 3), dtype=np.float64)
        self.engine.watch.add("kernels", began)
        if not self.slope:
            loss = self.loss.value(x, made)
            threshold = self.lam * self.loss.half_variance(made)
            return Evaluation(loss + self.lam * away, (made.image, threshold))
        found = self.loss.gradient(self.engine, x, made)
        total = found.value + self.lam * away
        arrays = found.pulled, found.direct, made.image
        return Evaluation(total, (*arrays, _single(found.value)))


@dataclass
class Seam:
    """`roughness` of x - f(x) in the hole, over images (N, C, h, w).

    Args:
        free: (N, 1, h, w), the hole.
    """

    engine: AutoencoderEngine
    free: Bool
    stages: int = field(default=1, init=False)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`; the gradient is the reconstruction, as `Blending` asks for."""
        (x,) = query
        made = self.engine.forward(x)
        began = time.perf_counter()
        value = roughness(x - made.image, self.free[items])
        self.engine.watch.add("kernels", began)
        return Evaluation(value, (made.image,))


@dataclass(frozen=True)
class EnergyMethod:
    """What is minimised, and how.

    Args:
        schedule: 'paper' (eq. 5 or 8 with the settings' step) or 'fast' (`Alternation`; of DSSIM
            with the squared error in its place).
        low, high: model intensities of black and white.
    """

    engine: AutoencoderEngine
    kernels: Kernels
    settings: EnergySettings
    low: float
    high: float
    schedule: str = "fast"

    def reconstruct(self, images: Float) -> Float:
        """f(x) of images (B, C, h, w); a copy."""
        return np.array(self.engine.forward(images).image)

    def scores(self, images: Float, kind: str) -> Float:
        """Anomaly maps of one pass, see `score_maps`."""
        return score_maps(self.engine, self.loss, images, cast("ScoreKind", kind))

    def solve(
        self,
        images: Float,
        *,
        free: Bool | None = None,
        max_steps: int | None = None,
        deadline: float | None = None,
        clock: Clock = time.perf_counter,
    ) -> Projected:
        """Project a batch of images.

        Args:
            images: (B, C, h, w) in model intensities.
            free: (B, 1, h, w), where pixels may move; None for blind. The paper's schedule then
                descends on L_r by eq. (7), the fast one minimises `Seam`.
        """
        limits = self.limits(free is not None, max_steps, deadline)
        if self.fast and free is not None:
            blending = Blending(free, self.low, self.high)
            outcome = run(Seam(self.engine, free), blending, (images,), limits, clock=clock)
        else:
            outcome = self._run(images, limits, free, clock)
        return Projected.of(outcome)

    @property
    def fast(self) -> bool:
        """Whether the schedule is the one without gradients."""
        return self.schedule == "fast"

    @property
    def loss(self) -> ReconstructionLoss:
        """L_r."""
        return ReconstructionLoss(self.kernels, self.settings, self.high - self.low)

    def limits(self, known: bool, max_steps: int | None, deadline: float | None) -> Limits:
        """When the search ends; `known`: where the pixels that may move are given."""
        fast_steps = _FILL_STEPS if known else _SEARCH_STEPS
        steps = max_steps or (fast_steps if self.fast else self.settings.max_steps)
        return Limits(steps, self.settings.tolerance, deadline=deadline)

    def stop(self, elements: int) -> float | None:
        """L_r without its constant at which the paper's schedule ends, for images of so many."""
        stop = self.settings.stop_loss
        return None if stop is None else stop - self.loss.constant(elements)

    def tuned(self, known: bool) -> bool:
        """Whether the paper's step is weighted by the reconstruction error, eq. 8."""
        return self.settings.step == "tuned" and not known

    def _run(self, images: Float, limits: Limits, free: Bool | None, clock: Clock) -> Outcome:
        s, loss = self.settings, self.loss
        problem = Energy(self.engine, loss, s.lam, images, slope=not self.fast)
        if self.fast:
            turns = Alternation(self.low, self.high)
            return run(problem, turns, (images,), limits, clock=clock)
        step = ProjectedStep(
            self.kernels, s.lam, s.alpha, self.tuned(free is not None), s.optimiser == "adam",
            self.stop(images[0].size), self.low, self.high, loss.direct_factor,
            None if free is None else free.astype(np.float32),
        )  # fmt: skip
        return run(problem, step, (images,), limits, clock=clock)


def _single(values: Double) -> Float:
    return np.asarray(values, np.float32)
