"""Relaxed RGI: latent, mask and generator weights together, for a few small steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from unblemish.bundle import Bundle
from unblemish.errors import BundleError
from unblemish.kernels.api import Kernels
from unblemish.runtime.backends.protocol import Array, Backend
from unblemish.runtime.engines import tensor_of_role
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import GeneratorEngine, Stopwatch
from unblemish.runtime.methods.inversion import Inversion
from unblemish.runtime.methods.rgi import Solution
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Clock, Limits, run, share_of
from unblemish.runtime.solvers.protocol import Double, Evaluation, Float, Index, Variables

DEFAULT_STEPS = 50
PAPER_STEPS = 500
PAPER_RATE = 1e-5
# The search has converged in z: a tenth of the paper's rate keeps Adam's first steps near it.
_LATENT_RATE = 0.01
_HOLD = 10.0


class WeightEngine(Protocol):
    """A generator whose weights are given with every call."""

    watch: Stopwatch

    def forward(self, z: Float, weights: Mapping[str, Array] | None = None) -> Float:
        """Images of latents (1, n) under these weights."""

    def backward(self, cotangent: Float) -> tuple[Float, Mapping[str, Array]]:
        """Gradient with respect to z and to each weight."""


@dataclass
class FinetuneInversion:
    """The objective of eq. 4 in z and theta, the mask being put in closed form.

    Under the mask the data say nothing, and weights fitted to the rest drift there, towards the
    defect as often as not. So we add, beyond the paper, hold * mean( M^2 (G - G_0)^2 ) with G_0 the
    image before the first step and M held fixed: what the mask covers stays as RGI restored it.

    Variables are (z, theta_1, theta_2, ...), each with a leading axis of 1.
    """

    engine: WeightEngine
    inversion: Inversion
    names: tuple[str, ...]
    item: int
    hold: float
    stages: int = 1
    _before: Float | None = field(default=None, init=False)

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`."""
        z, *theta = query
        weights = {name: array[0] for name, array in zip(self.names, theta, strict=True)}
        g = self.engine.forward(z, weights)
        row = np.array([self.item])
        lam = np.ascontiguousarray(self.inversion.ladder[-1, row], np.float32)
        x = self.inversion.targets.rows(row)
        value, mask, cotangent = self.inversion.image_part(x, g, lam)
        began = time.perf_counter()
        self._hold_still(g, mask, cotangent, value)
        self.engine.watch.add("kernels", began)
        grad, others = self.engine.backward(cotangent)
        grad = self.inversion.with_prior(z, grad, value)
        return Evaluation(value, (grad, *(others[name][None] for name in self.names)))

    def _hold_still(self, g: Float, mask: Float, cotangent: Float, value: Double) -> None:
        if not self.hold:
            return
        if self._before is None:
            self._before = g.copy()
        weight = np.float32(self.hold / g.size) * mask * mask
        drift = g - self._before
        value += float((weight * drift * drift).sum(dtype=np.float64))
        cotangent += 2 * weight * drift


@dataclass
class Finetuner:
    """Fine-tune private copies of the weights to one image after the other.

    Args:
        engine: runs the generator under given weights.
        weights: name -> array as exported; never written to.
        steps, rate: how many steps of Adam, and their size for the weights.
        latent_rate: their size for z.
        hold: weight of what keeps the image under the mask still (see `FinetuneInversion`).
    Source: seed 000, eq. 4: theta joins when image and mask are stable, with a small step and for
        few iterations. The paper takes 500 to 1,500 steps of 1e-5 without `hold`.
    """

    engine: WeightEngine
    weights: Mapping[str, Array]
    kernels: Kernels
    steps: int
    rate: float
    latent_rate: float = _LATENT_RATE
    hold: float = _HOLD

    def refine(
        self, inversion: Inversion, solution: Solution, deadline: float | None, clock: Clock
    ) -> Solution:
        """Go on from a solution of RGI; what is returned is never worse in the objective.

        Args:
            inversion: the objective, item t being image t; its last stage is the target lambda.
            deadline: for all images, which share the time until then.
        """
        images, z, values = [], solution.z.copy(), solution.value.copy()
        status, steps, traces = list(solution.status), solution.steps.copy(), list(solution.trace)
        for t in range(len(z)):
            limits = Limits(self.steps, deadline=share_of(deadline, len(z) - t, clock))
            image, outcome_z, value, state, count, trace = self._one(
                inversion, t, solution.z[t], limits, clock
            )
            images.append(image)
            z[t], values[t] = outcome_z, value
            status[t] = _joined(solution.status[t], state)
            steps[t] += count
            traces[t] = np.concatenate([traces[t], trace])
        return replace(
            solution,
            z=z,
            mask=None,
            value=values,
            status=tuple(status),
            steps=steps,
            trace=tuple(traces),
            images=np.concatenate(images),
        )

    def _one(
        self, inversion: Inversion, t: int, z: Float, limits: Limits, clock: Clock
    ) -> tuple[Float, Float, float, Status, int, Array]:
        names = tuple(self.weights)
        problem = FinetuneInversion(self.engine, inversion, names, t, self.hold)
        start = (z[None], *(self.weights[name][None] for name in names))
        solver = Adam(self.kernels, (self.latent_rate, *(self.rate for _ in names)))
        outcome = run(problem, solver, start, limits, clock=clock)
        best, *theta = outcome.best
        tuned = {name: array[0] for name, array in zip(names, theta, strict=True)}
        image = np.array(self.engine.forward(best, tuned))
        return (
            image,
            best[0],
            float(outcome.value[0]),
            outcome.status[0],
            int(outcome.steps[0]),
            outcome.trace[0],
        )


def _joined(first: Status, second: Status) -> Status:
    """Fine-tuning runs for a fixed number of steps: reaching it is no news."""
    return first if second is Status.MAX_STEPS else second


def load_finetuner(
    bundle: Bundle,
    backend: Backend,
    kernels: Kernels,
    *,
    paper: bool = False,
    threads: int | None = None,
) -> Finetuner:
    """A fine-tuner from the bundle's weight-gradient graphs, else from its plain graph by torch.

    Args:
        paper: the paper's 1e-5 for the weights and nothing held; 500 steps unless the settings
            say how many.
        threads: of torch, where it is needed.
    Raises: BundleError where the bundle has neither; MissingDependencyError where torch is needed
    and missing.
    """
    settings = bundle.manifest.rgi
    steps = settings.finetune_steps or (PAPER_STEPS if paper else DEFAULT_STEPS)
    if "finetune_forward" in bundle.manifest.graphs and backend.name != "torch":
        engine, weights = _from_graphs(bundle, backend)
    else:
        from unblemish.runtime.methods.torch_weights import torch_weight_engine

        engine, weights = torch_weight_engine(bundle, threads)
    if paper:
        return Finetuner(engine, weights, kernels, steps, PAPER_RATE, hold=0.0)
    return Finetuner(engine, weights, kernels, steps, settings.finetune_lr)


def _from_graphs(bundle: Bundle, backend: Backend) -> tuple[WeightEngine, dict[str, Array]]:
    manifest = bundle.manifest
    pair = backend.pair(
        str(bundle.graph("finetune_forward")), str(bundle.graph("finetune_backward"))
    )
    latent = tensor_of_role(manifest, "finetune_forward", "latent", output=False).name
    image = tensor_of_role(manifest, "finetune_forward", "image", output=True).name
    names = [t.name for t in manifest.graphs["finetune_forward"].inputs if t.role == "weight"]
    return GeneratorEngine(pair, latent, image), _read_weights(bundle, names)


def _read_weights(bundle: Bundle, names: list[str]) -> dict[str, Array]:
    if bundle.manifest.finetune_weights is None:
        raise BundleError(
            f"bundle {bundle.path} has graphs for fine-tuning but no weights for them. "
            "Export it again."
        )
    path = bundle.file(bundle.manifest.finetune_weights)
    try:
        with np.load(path, allow_pickle=False) as stored:
            weights = {name: np.ascontiguousarray(stored[name], np.float32) for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"the weights for fine-tuning in {path} cannot be read: {error}. "
            "Export the bundle again."
        ) from error
    for array in weights.values():
        array.flags.writeable = False
    return weights
