"""Relaxed RGI: latent, mask and generator weights together, for a few small steps."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from unblemish.bundle import Bundle
from unblemish.bundle.searches import RgiSettings
from unblemish.errors import BackendError, BundleError, MissingDependencyError, ModelError
from unblemish.kernels.api import Kernels
from unblemish.runtime.backends.protocol import Array, Backend
from unblemish.runtime.engines import tensor_of_role
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import GeneratorEngine, Stopwatch
from unblemish.runtime.methods.inversion import Inversion
from unblemish.runtime.methods.rgi import Solution
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome, run, share_of
from unblemish.runtime.solvers.protocol import Double, Evaluation, Float, Index, Variables

if TYPE_CHECKING:
    from unblemish.runtime.device.engines import DeviceEngines

_LOG = logging.getLogger("unblemish")
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


@dataclass(frozen=True)
class Tuning:
    """How far the weights may move.

    Args:
        steps, rate: how many steps of Adam, and their size for the weights.
        latent_rate: their size for z.
        hold: weight of what keeps the image under the mask still (see `FinetuneInversion`).
    Source: seed 000, eq. 4: theta joins when image and mask are stable, with a small step and for
        few iterations. The paper takes 500 to 1,500 steps of 1e-5 without `hold`.
    """

    steps: int
    rate: float
    latent_rate: float = _LATENT_RATE
    hold: float = _HOLD


class Watched(Protocol):
    """Whatever books the time that it takes."""

    watch: Stopwatch


class Finetuner(ABC):
    """Fine-tunes private copies of the weights to one image after the other.

    Args:
        engine: what `watch` belongs to: the time is booked there.
    """

    engine: Watched

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
            until = share_of(deadline, len(z) - t, clock)
            image, outcome = self._tune(inversion, t, solution.z[t : t + 1], until, clock)
            images.append(image)
            z[t], values[t] = outcome.best[0][0], outcome.value[0]
            status[t] = _joined(solution.status[t], outcome.status[0])
            steps[t] += outcome.steps[0]
            traces[t] = np.concatenate([traces[t], outcome.trace[0]])
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

    @abstractmethod
    def _tune(
        self, inversion: Inversion, t: int, z: Float, deadline: float | None, clock: Clock
    ) -> tuple[Float, Outcome]:
        """Fine-tune to image t from z (1, n): the image (1, C, h, w), and how z ended."""


@dataclass
class HostFinetuner(Finetuner):
    """Fine-tuning that the host drives.

    Args:
        engine: runs the generator under given weights.
        weights: name -> array as exported; never written to.
    """

    engine: WeightEngine
    weights: Mapping[str, Array]
    kernels: Kernels
    tuning: Tuning

    def _tune(
        self, inversion: Inversion, t: int, z: Float, deadline: float | None, clock: Clock
    ) -> tuple[Float, Outcome]:
        names, tuning = tuple(self.weights), self.tuning
        problem = FinetuneInversion(self.engine, inversion, names, t, tuning.hold)
        start = (z, *(self.weights[name][None] for name in names))
        solver = Adam(self.kernels, (tuning.latent_rate, *(tuning.rate for _ in names)))
        outcome = run(problem, solver, start, Limits(tuning.steps, deadline=deadline), clock=clock)
        best, *theta = outcome.best
        tuned = {name: array[0] for name, array in zip(names, theta, strict=True)}
        return np.array(self.engine.forward(best, tuned)), outcome


def _joined(first: Status, second: Status) -> Status:
    """Fine-tuning runs for a fixed number of steps: reaching it is no news."""
    return first if second is Status.MAX_STEPS else second


def tuning_of(settings: RgiSettings, *, paper: bool) -> Tuning:
    """How far the weights may move.

    Args:
        paper: the paper's 1e-5 for the weights and nothing held; 500 steps unless the settings
            say how many.
    """
    steps = settings.finetune_steps or (PAPER_STEPS if paper else DEFAULT_STEPS)
    if paper:
        return Tuning(steps, PAPER_RATE, hold=0.0)
    return Tuning(steps, settings.finetune_lr)


def load_finetuner(
    bundle: Bundle,
    backend: Backend,
    kernels: Kernels,
    *,
    paper: bool = False,
    threads: int | None = None,
    device: DeviceEngines | None = None,
) -> Finetuner:
    """A fine-tuner from the bundle's weight-gradient graphs, else from its plain graph by torch.

    Args:
        paper: see `tuning_of`.
        threads: of torch, where it is needed.
        device: engines on the device, where the search runs there; what cannot be fine-tuned there
            is on the host, and a warning says why.
    Raises: BundleError where the bundle has neither; MissingDependencyError where torch is needed
    and missing.
    """
    tuning = tuning_of(bundle.manifest.rgi, paper=paper)
    if device is not None:
        from unblemish.runtime.device.finetuner import open_finetuner

        try:
            return open_finetuner(bundle, device, tuning, threads)
        except (BackendError, MissingDependencyError, ModelError) as error:
            device.kernels.synchronise()  # what was made there dies with `error`
            _LOG.warning("R-RGI: the weights are fine-tuned on the host: %s", error)
    if "finetune_forward" in bundle.manifest.graphs and backend.name != "torch":
        engine, weights = _from_graphs(bundle, backend)
    else:
        from unblemish.runtime.methods.torch_weights import torch_weight_engine

        engine, weights = torch_weight_engine(bundle, threads)
    return HostFinetuner(engine, weights, kernels, tuning)


def _from_graphs(bundle: Bundle, backend: Backend) -> tuple[WeightEngine, dict[str, Array]]:
    manifest = bundle.manifest
    pair = backend.pair(
        str(bundle.graph("finetune_forward")), str(bundle.graph("finetune_backward"))
    )
    latent = tensor_of_role(manifest, "finetune_forward", "latent", output=False).name
    image = tensor_of_role(manifest, "finetune_forward", "image", output=True).name
    return GeneratorEngine(pair, latent, image), read_weights(bundle)


def read_weights(bundle: Bundle) -> dict[str, Array]:
    """The weights that the graphs for fine-tuning are fed, by name; read-only.

    Raises: BundleError where the bundle has none, or they cannot be read.
    """
    record = bundle.manifest.graphs["finetune_forward"]
    names = [tensor.name for tensor in record.inputs if tensor.role == "weight"]
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
