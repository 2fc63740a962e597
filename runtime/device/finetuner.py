"""R-RGI's fine-tuner on the device: by the bundle's weight-gradient graphs, else by torch."""

from __future__ import annotations

import time

import numpy as np

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import GraphRole
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.device.steps.finetuning import DeviceFinetuning, WeightMemory, WeightPasses
from unblemish.runtime.device.steps.image_loss import LossSettings
from unblemish.runtime.device.steps.terms import DeviceTerm, open_term
from unblemish.runtime.engines import tensor_of_role
from unblemish.runtime.methods.engine import Stopwatch
from unblemish.runtime.methods.inversion import Inversion
from unblemish.runtime.methods.rrgi import Finetuner, Tuning, read_weights
from unblemish.runtime.methods.terms import DiscriminatorTerm, FeatureTerm, ImageTerm
from unblemish.runtime.solvers.loop import Clock, Outcome
from unblemish.runtime.solvers.protocol import Float

_EVERY = 10  # iterations between two looks at the flags


class Booked:
    """What the time is booked to: on the device the passes are not told from the kernels."""

    def __init__(self) -> None:
        self.watch = Stopwatch()


class DeviceFinetuner(Finetuner):
    """Fine-tuning that stays on the device; one step serves all images."""

    def __init__(self, step: DeviceFinetuning) -> None:
        self.engine: Booked = Booked()
        self.step = step
        self.replay = Replay(step.kernels.device, step)

    def _tune(
        self, inversion: Inversion, t: int, z: Float, deadline: float | None, clock: Clock
    ) -> tuple[Float, Outcome]:
        began = time.perf_counter()
        image = inversion.targets.rows(np.array([t]))
        self.step.start(image, z, float(inversion.ladder[-1, t]))
        self.step.kernels.synchronise()  # a step is timed by itself
        schedule = Schedule(_EVERY, deadline)
        seconds = run(self.step.kernels.device, self.replay, schedule, clock=clock)
        found = self.step.outcome(seconds)
        self.engine.watch.add("device", began)
        return found


def open_finetuner(
    bundle: Bundle, engines: DeviceEngines, tuning: Tuning, threads: int | None = None
) -> DeviceFinetuner:
    """A fine-tuner over the memory of these engines.

    Args:
        threads: of torch, where it is needed.
    Raises: BackendError or ModelError where no engine takes the generator or a term there;
        MissingDependencyError where torch is needed and missing; BundleError.
    """
    settings, kernels = bundle.manifest.rgi, engines.kernels
    by_graphs = "finetune_forward" in bundle.manifest.graphs
    passes, weights = _graphs(bundle, engines) if by_graphs else _torch(bundle, engines, threads)
    step = DeviceFinetuning(
        kernels, passes, weights, tuning,
        LossSettings(settings.loss, shared=settings.mask == "shared"),
        weight=settings.latent_weight, terms=_terms(bundle, engines, passes.generator.image),
    )  # fmt: skip
    return DeviceFinetuner(step)


def _terms(bundle: Bundle, engines: DeviceEngines, image: DeviceArray) -> list[DeviceTerm]:
    """The further terms that the settings give weight to, as `load_engines` has them."""
    settings = bundle.manifest.rgi
    weights: dict[type[ImageTerm], float] = {
        DiscriminatorTerm: settings.discriminator_weight,
        FeatureTerm: settings.feature_weight,
    }
    return [
        open_term(engines, bundle, kind, weight, image)
        for kind, weight in weights.items()
        if weight
    ]


def _graphs(bundle: Bundle, engines: DeviceEngines) -> tuple[WeightPasses, WeightMemory]:
    latent, image, z = _ends(bundle, "finetune_forward", engines)
    weights = WeightMemory.holding(engines.kernels.device, read_weights(bundle))
    inputs = {latent: z, **weights.parts}
    there, back = bundle.graph("finetune_forward"), bundle.graph("finetune_backward")
    pair = engines.pair(str(there), str(back), inputs)
    return WeightPasses.of(pair, latent, image), weights


def _torch(
    bundle: Bundle, engines: DeviceEngines, threads: int | None
) -> tuple[WeightPasses, WeightMemory]:
    from unblemish.runtime.device.engines.torch_pass import torch_pair
    from unblemish.runtime.methods.torch_weights import load_torch_graph, weights_of

    graph = load_torch_graph(bundle, threads)
    latent, image, z = _ends(bundle, "generator", engines)
    weights = WeightMemory.holding(engines.kernels.device, weights_of(graph))
    pair = torch_pair(engines.kernels.device, graph, {latent: z, **weights.parts}, image)
    return WeightPasses.of(pair, latent, image), weights


def _ends(bundle: Bundle, role: GraphRole, engines: DeviceEngines) -> tuple[str, str, DeviceArray]:
    """Names of latent and image of a graph, and memory for one latent."""
    latent = tensor_of_role(bundle.manifest, role, "latent", output=False)
    image = tensor_of_role(bundle.manifest, role, "image", output=True)
    z = engines.kernels.device.zeros((1, *(int(d) for d in latent.shape[1:])))
    return latent.name, image.name, z
