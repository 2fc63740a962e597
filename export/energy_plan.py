"""What the bundle of an autoencoder would hold: the reconstruction, its gradient, the settings."""

from __future__ import annotations

from collections.abc import Sequence
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
from unblemish.export.foreign_autoencoder import open_halves, open_onnx_autoencoder
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS
from unblemish.export.options import ExportOptions
from unblemish.export.passes import optimise
from unblemish.export.source import IMAGE, Original

if TYPE_CHECKING:
    from unblemish.export.plan import Plan

LOW, HIGH = 0.0, 1.0
ALPHA, LAM = 0.5, 0.05  # step size and weight of the distance beside an l2 loss, seed 002, 4.1


@dataclass(frozen=True)
class AutoencoderSource:
    """An autoencoder, before its gradient.

    Args:
        kind: name in a bundle: l2ae, dsae, vae, gamma-vae or onnx. loss: L_r of its energy.
        reconstruct: 'image' (batch, C, H, W) -> the values of `outputs`.
        outputs: 'reconstruction'; of VAEs 'mean' and 'log_variance'; 'log_scale' where learned.
        gamma: learned standard deviation of all elements, where there is one.
        losses: (share, L_r that this share of the training images does not exceed).
        oracle: the torch network behind `reconstruct`, a `Projector` or alike; None without torch.
        parameters: weights of encoder and decoder. latent: 0 where unknown.
        original: the ONNX file as it was given, with the name and shape of its image.
        noise: root mean square error on normal images, share of the intensity range.
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
    noise: float = 0.0
    original: Original | None = None


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
    """Read a checkpoint or ONNX file; None where it holds something else, or nothing.

    Raises: ModelError where it is damaged; ConfigError where an option is for generators alone, or
    another method was asked for.
    """
    if not path.is_file():
        return None
    if path.suffix.lower() == ".onnx":
        found = open_onnx_autoencoder(path, options)
        if found is not None:
            _refuse_generator_options(options, allowed=("--image-output", "--range"))
            _refuse_latent(path, options)
        return found
    try:
        import torch
    except ImportError:
        return None
    from unblemish.export.from_torch import to_onnx
    from unblemish.export.models.autoencoder import Projector
    from unblemish.export.models.checkpoint import load_autoencoder

    model = load_autoencoder(path)
    if model is None and options.method != "energy":
        return None
    _refuse_generator_options(options)
    if model is None:
        _refuse_latent(path, options)
        return open_halves(path)
    if options.method == "rgi":
        raise ConfigError(
            f"{path} holds an autoencoder, which is searched by energy projection. Leave out "
            "--method; --latent adds its decoder as a generator."
        )
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
        projector, dict(model.preprocess), noise=model.noise,
    )  # fmt: skip


def _refuse_latent(path: Path, options: ExportOptions) -> None:
    if options.latent:
        raise ConfigError(
            f"--latent needs an autoencoder of unblemish train, whose halves are known apart; "
            f"{path} is another. Leave it out."
        )


def _refuse_generator_options(options: ExportOptions, allowed: Sequence[str] = ()) -> None:
    given = {
        "--discriminator": options.discriminator, "--features": options.features,
        "--discriminator-layer": options.discriminator_layer,
        "--discriminator-onnx": options.discriminator_onnx,
        "--finetune": options.finetune, "--latent-input": options.latent_input,
        "--image-output": options.image_output, "--range": options.value_range,
    }  # fmt: skip
    named = [name for name, value in given.items() if value and name not in allowed]
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

    Half the weight is the error that a pixel must have to move at all. The published weight has no
    regard for what a model leaves of normal parts; ours adds that, so that it stays where it is.
    This is for an l2 loss in [0, 1]. Divided by 2 gamma^2 the squared error is steeper by as much:
    the step is shorter by it, and the distance to the frame counts as much more. Of intensities s
    times as large the squared error is s^2 times as large, and the tuned step s^3 times where it
    should be s times. So all of them do what they do beside an l2 loss in [0, 1].
    """
    gamma, span = source.gamma, source.high - source.low
    if gamma is None and "log_scale" in source.outputs:  # of every element: about as the error
        gamma = source.noise or None
    flatter = 1.0 if gamma is None else 2 * gamma**2
    return {
        "loss": source.loss, "gamma": source.gamma, "training_losses": source.losses,
        "alpha": ALPHA * flatter / span**2, "lam": (LAM + 2 * source.noise) * span / flatter,
    }  # fmt: skip
