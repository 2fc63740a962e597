"""Robust GAN inversion: the fast schedule and the paper's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unblemish.kernels.api import Kernels
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.joint import JointInversion
from unblemish.runtime.methods.known_mask import KnownMask
from unblemish.runtime.methods.losses import image_loss
from unblemish.runtime.methods.terms import ImageTerm
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome, run
from unblemish.runtime.solvers.protocol import Bool, Double, Float, Index

PAPER_STEPS = 2000
PAPER_RATE = 0.1
_LADDER = (16.0, 4.0, 1.0)
_RACE = 6
_FLOOR = 0.01  # of lam: the objective of a mask over one pixel in a hundred


@dataclass(frozen=True)
class RgiMethod:
    """What is minimised, and by which schedule.

    Args:
        engine: the generator.
        norm: 'l2' or 'l1'; shared: one mask for all channels; masked: False for inversion without
            a mask (AnoGAN, the baselines of seed 000, appendix C).
        schedule: 'fast' or 'paper'.
        lengths: (n,) typical length of each latent (see `latent_lengths`), for the fast schedule.
    """

    engine: GeneratorEngine
    kernels: Kernels
    norm: str = "l2"
    shared: bool = True
    masked: bool = True
    schedule: str = "fast"
    terms: tuple[ImageTerm, ...] = ()
    latent_weight: float = 0.0
    lengths: Double | None = None

    def solve(
        self,
        images: Float,
        starts: Float,
        lam: Float,
        limits: Limits,
        *,
        near: bool = False,
        free: Bool | None = None,
        clock: Clock = time.perf_counter,
    ) -> Solution:
        """Search the latents of a batch of images.

        Args:
            images: (T, C, h, w) in model intensities.
            starts: (T, k, n), k starts each; the best result is kept.
            lam: (T,).
            near: the starts lie near the solution: the fast schedule begins at the target lambda.
            free: (T, 1, h, w), the mask where it is known; it is then not searched.
        """
        count, per_image, size = starts.shape
        owner = np.repeat(np.arange(count), per_image)
        targets = Targets(images, owner)
        each = np.repeat(np.asarray(lam, np.float32), per_image)
        z = np.ascontiguousarray(starts.reshape(-1, size), np.float32)
        if free is not None:
            outcome = self._known(KnownMask(self.engine, targets, free, self.latent_weight), z,
                                  limits, clock)  # fmt: skip
        elif self.schedule == "paper":
            outcome = self._paper(targets, z, each, limits, clock)
        else:
            outcome = self._fast(targets, z, each, limits, near, clock)
        return choose(outcome, owner, count)

    def inversion(self, targets: Targets, ladder: Float) -> Inversion:
        """The objective in z alone, lam by stage and item, (stages, N)."""
        loss = image_loss(self.kernels, self.norm, masked=self.masked)
        return Inversion(
            self.engine, loss, targets, ladder, self.shared, self.terms, self.latent_weight
        )

    def rungs(self, *, near: bool = False, known: bool = False) -> Float:
        """What lam is multiplied by, by stage; near, known: see `solve`."""
        graduated = self.masked and not near and not known
        return np.array(_LADDER if graduated else (1.0,), np.float32)

    def _fast(
        self, targets: Targets, z: Float, lam: Float, limits: Limits, near: bool, clock: Clock
    ) -> Outcome:
        """L-BFGS on the profile loss while lam falls to its target.

        A large lam masks little, so that the loss is close to plain least squares and forgives a
        poor start; every fall then lets the mask take what the manifold cannot explain.
        """
        problem = self.inversion(targets, self.rungs(near=near)[:, None] * lam[None])
        return run(
            problem, Lbfgs(scale=self.lengths), (z,), limits, groups=targets.of_item, clock=clock
        )

    def _known(self, problem: KnownMask, z: Float, limits: Limits, clock: Clock) -> Outcome:
        groups = problem.targets.of_item
        if self.schedule == "paper":
            adam = Adam(self.kernels, (PAPER_RATE,))
            return run(problem, adam, (z,), limits, groups=groups, clock=clock)
        solver = Lbfgs(scale=self.lengths)
        return run(problem, solver, (z,), limits, groups=groups, clock=clock)

    def _paper(
        self, targets: Targets, z: Float, lam: Float, limits: Limits, clock: Clock
    ) -> Outcome:
        """Adam with rate 0.1 on z and M together, M free and 0 at the start."""
        if not self.masked:
            plain = self.inversion(targets, lam[None])
            return run(plain, Adam(self.kernels, (PAPER_RATE,)), (z,), limits, clock=clock)
        joint = JointInversion(
            self.engine, self.kernels, targets, lam, self.norm, self.terms, self.latent_weight
        )
        channels = 1 if self.shared else targets.images.shape[1]
        mask = np.zeros((len(z), channels, *targets.images.shape[2:]), np.float32)
        solver = Adam(self.kernels, (PAPER_RATE, PAPER_RATE))
        return run(joint, solver, (z, mask), limits, clock=clock)


@dataclass(frozen=True)
class Solution:
    """The best start of every image.

    Args:
        z: (T, n). mask: (T, 1 or C, h, w) where the mask was a variable (paper), else None.
        value: (T,) objective.
        status, steps, trace: of the winning start, one per image.
        images: (T, C, h, w) where they are not simply G(z) (R-RGI), else None.
    """

    z: Float
    mask: Float | None
    value: Double
    status: tuple[Status, ...]
    steps: Index
    trace: tuple[Double, ...]
    images: Float | None = None

    @staticmethod
    def joined(parts: Sequence[Solution]) -> Solution:
        """Solutions of several batches, none of which has `images`."""
        masks = [part.mask for part in parts if part.mask is not None]
        return Solution(
            z=np.concatenate([part.z for part in parts]),
            mask=np.concatenate(masks) if masks else None,
            value=np.concatenate([part.value for part in parts]),
            status=tuple(status for part in parts for status in part.status),
            steps=np.concatenate([part.steps for part in parts]),
            trace=tuple(trace for part in parts for trace in part.trace),
        )


def unrefined(z: Float) -> Solution:
    """The solution of a search that was not asked for: the start values (T, n) themselves."""
    count = len(z)
    return Solution(
        z=z,
        mask=None,
        value=np.full(count, np.inf),
        status=(Status.PLAIN,) * count,
        steps=np.zeros(count, np.intp),
        trace=(np.zeros(0),) * count,
    )


def choose(outcome: Outcome, owner: Index, count: int) -> Solution:
    """Per image the start that came furthest, and of those the lowest."""
    order = np.lexsort((outcome.value, -outcome.stage))
    winners = np.array([next(i for i in order if owner[i] == t) for t in range(count)], np.intp)
    return Solution(
        z=outcome.best[0][winners],
        mask=outcome.best[1][winners] if len(outcome.best) > 1 else None,
        value=outcome.value[winners],
        status=tuple(outcome.status[i] for i in winners),
        steps=outcome.steps[winners],
        trace=tuple(outcome.trace[i] for i in winners),
    )


def limits_for(
    schedule: str, max_steps: int, tolerance: float, deadline: float | None, starts: int, lam: float
) -> Limits:
    """Limits of a schedule: the paper's stops at nothing but the number of steps."""
    if schedule == "paper":
        return Limits(max_steps=max_steps, deadline=deadline)
    return Limits(
        max_steps,
        tolerance,
        patience=3,
        deadline=deadline,
        race=_RACE if starts > 1 else 0,
        floor=_FLOOR * lam,
    )
