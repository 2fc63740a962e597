"""What the bundle of an autoencoder would hold: the reconstruction, its gradient, the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ConfigError
from unblemish.export import differentiate
from unblemish.export.flops import Cost, cost, kept_bytes
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS
from unblemish.export.options import ExportOptions
from unblemish.export.passes import optimise
from unblemish.export.source import IMAGE

if TYPE_CHECKING:
    from unblemish.export.plan import Plan

LOW, HIGH = 0.0, 1.0
ALPHA, LAM = 0.5, 0.05  # step size and weight of the distance beside an l2 loss, seed 002, 4.1


@dataclass(frozen=True)
class AutoencoderSource:
    """An autoencoder, before its gradient.

    Args:
        kind: name in a bundle: l2ae, dsae, vae or gamma-vae. loss: L_r of its energy.
        reconstruct: 'image' (batch, C, H, W) -> the values of `outputs`.
        outputs: 'reconstruction'; of VAEs 'mean' and 'log_variance'; 'log_scale' where learned.
        gamma: learned standard deviation of all elements, where there is one; `typical_gamma` the
            usual one, where every element has its own.
        losses: (share, L_r that this share of the training images does not exceed).
        oracle: the torch network behind `reconstruct`, a `Projector`.
        parameters: weights of encoder and decoder.
    """

    kind: str
    loss: str
    reconstruct: onnx.ModelProto
    outputs: tuple[str, ...]
    latent: int
    channels: int
    height: int
    width: int
    parameters: int
    gamma: float | None
    losses: tuple[tuple[float, float], ...]
    oracle: Any
    preprocess: dict[str, Any] = field(default_factory=dict)
    low: float = LOW
    high: float = HIGH
    typical_gamma: float | None = None


@dataclass(frozen=True)
class EnergyPlan:
    """Everything that would be written; the fields are those of `Plan`.

    `latent`: plan of the decoder as a generator, whose graphs are among `graphs`, or None.
    """

    source: AutoencoderSource
    graphs: dict[GraphRole, onnx.ModelProto]
    fused: onnx.ModelProto
    costs: dict[GraphRole, Cost]
    kept: int
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    latent: Plan | None = None

    def step_flops(self) -> int:
        """Arithmetic of one value-and-gradient step."""
        return self.costs["reconstruct_forward"].flops + self.costs["reconstruct_backward"].flops


def open_autoencoder(path: Path, options: ExportOptions) -> AutoencoderSource | None:
    """Read a checkpoint; None where it holds no autoencoder, but something else or nothing.

    Raises: ModelError where it is damaged; ConfigError where an option is for generators alone.
    """
    if not path.is_file() or path.suffix.lower() == ".onnx":
        return None
    try:
        import torch
    except ImportError:
        return None
    from unblemish.export.from_torch import to_onnx
    from unblemish.export.models.autoencoder import Projector
    from unblemish.export.models.checkpoint import load_autoencoder

    model = load_autoencoder(path)
    if model is None:
        return None
    _refuse_generator_options(options)
    s, kind = model.network.settings, AUTOENCODERS[model.kind]
    projector = Projector(model.network).eval()
    log_gamma = getattr(model.network, "log_gamma", None)
    return AutoencoderSource(
        kind.model, kind.loss,
        to_onnx(projector, (s.channels, s.size, s.size), input_name=IMAGE,
                output_name=projector.outputs),
        projector.outputs, s.latent, s.channels, s.size, s.size,
        sum(p.numel() for p in model.network.parameters()),
        None if log_gamma is None else float(torch.exp(log_gamma)),
        tuple((float(share), float(loss)) for share, loss in model.losses),
        projector, dict(model.preprocess), typical_gamma=model.figures.get("decoder_scale"),
    )  # fmt: skip


def _refuse_generator_options(options: ExportOptions) -> None:
    given = {
        "--discriminator": options.discriminator, "--features": options.features,
        "--finetune": options.finetune, "--latent-input": options.latent_input,
        "--image-output": options.image_output, "--range": options.value_range,
    }  # fmt: skip
    named = [name for name, value in given.items() if value]
    if named:
        raise ConfigError(
            f"an autoencoder has no use for {', '.join(named)}: that is for generators. "
            "Leave it out."
        )


def plan_energy(source: AutoencoderSource) -> EnergyPlan:
    """Differentiate and optimise the reconstruction with respect to the image.

    Every output can be given a cotangent: that of the reconstruction carries the energy, those of
    mean and log variance the divergence from the prior.
    """
    plain = optimise(source.reconstruct)
    ways = differentiate(plain, wrt=[IMAGE], outputs=list(source.outputs))
    graphs: dict[GraphRole, onnx.ModelProto] = {
        "reconstruct": plain,
        "reconstruct_forward": optimise(ways.forward),
        "reconstruct_backward": optimise(ways.backward),
    }
    outputs = graphs["reconstruct_forward"].graph.output
    kept = [value.name for value in outputs if value.name not in source.outputs]
    return EnergyPlan(
        source, graphs, optimise(ways.fused), {role: cost(g) for role, g in graphs.items()},
        kept_bytes(graphs["reconstruct_forward"], kept),
    )  # fmt: skip


def energy_settings(source: AutoencoderSource) -> dict[str, Any]:
    """Fields of `EnergySettings` that the model decides.

    Divided by 2 gamma^2 the squared error is steeper by as much: the step is shorter by it, and the
    distance to the frame counts as much more, so that both do what they do beside an l2 loss.
    """
    known = {
        "loss": source.loss, "gamma": source.gamma, "typical_gamma": source.typical_gamma,
        "training_losses": source.losses,
    }  # fmt: skip
    gamma = source.gamma or source.typical_gamma
    if gamma is None:
        return known
    flatter = 2 * gamma**2
    return {**known, "alpha": ALPHA * flatter, "lam": LAM / flatter}
