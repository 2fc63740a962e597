"""Relaxed RGI: latent, mask and generator weights together, for a few small steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import RgiSettings
from unblemish.errors import BundleError
from unblemish.kernels.api import Kernels
from unblemish.runtime.backends.protocol import Array, Backend
from unblemish.runtime.engines import tensor_of_role
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import GeneratorEngine, Stopwatch
from unblemish.runtime.methods.inversion import Inversion
from unblemish.runtime.methods.rgi import Solution
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Clock, Limits, run
from unblemish.runtime.solvers.protocol import Evaluation, Float, Index, Variables

DEFAULT_STEPS = 50
# The search has converged in z: a tenth of the paper's rate keeps Adam's first steps near it.
_LATENT_RATE = 0.01


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

    Variables are (z, theta_1, theta_2, ...), each with a leading axis of 1.
    """

    engine: WeightEngine
    inversion: Inversion
    names: tuple[str, ...]
    item: int
    stages: int = 1

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`."""
        z, *theta = query
        weights = {name: array[0] for name, array in zip(self.names, theta, strict=True)}
        g = self.engine.forward(z, weights)
        began = time.perf_counter()
        row = np.array([self.item])
        lam = np.ascontiguousarray(self.inversion.ladder[-1, row], np.float32)
        value, _, cotangent = self.inversion.image_part(self.inversion.targets.rows(row), g, lam)
        self.engine.watch.add("kernels", began)
        grad, others = self.engine.backward(cotangent)
        grad = self.inversion.with_prior(z, grad, value)
        return Evaluation(value, (grad, *(others[name][None] for name in self.names)))


@dataclass
class Finetuner:
    """Fine-tune private copies of the weights to one image after the other.

    Args:
        engine: runs the generator under given weights.
        weights: name -> array as exported; never written to.
        steps, rate: how many steps of Adam, and their size for the weights.
    Source: seed 000, eq. 4: theta joins when image and mask are stable, with a small step and for
        few iterations; appendix G: 1e-5.
    """

    engine: WeightEngine
    weights: Mapping[str, Array]
    kernels: Kernels
    steps: int
    rate: float
    latent_rate: float = field(default=_LATENT_RATE)

    def refine(
        self, inversion: Inversion, solution: Solution, deadline: float | None, clock: Clock
    ) -> Solution:
        """Go on from a solution of RGI; what is returned is never worse in the objective.

        Args:
            inversion: the objective, item t being image t; its last stage is the target lambda.
        """
        limits = Limits(max_steps=self.steps, deadline=deadline)
        images, z, values = [], solution.z.copy(), solution.value.copy()
        status, steps, traces = list(solution.status), solution.steps.copy(), list(solution.trace)
        for t in range(len(z)):
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
        problem = FinetuneInversion(self.engine, inversion, names, t)
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
    bundle: Bundle, backend: Backend, kernels: Kernels, settings: RgiSettings
) -> Finetuner:
    """A fine-tuner from the bundle's weight-gradient graphs, else from its plain graph by torch.

    Raises: BundleError where the bundle has neither; MissingDependencyError where torch is needed
    and missing.
    """
    steps = settings.finetune_steps or DEFAULT_STEPS
    if "finetune_forward" in bundle.manifest.graphs and backend.name != "torch":
        engine, weights = _from_graphs(bundle, backend)
    else:
        from unblemish.runtime.methods.torch_weights import torch_weight_engine

        engine, weights = torch_weight_engine(bundle)
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
