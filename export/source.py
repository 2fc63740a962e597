"""What is to be exported, brought to one form: ONNX models from z and image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from unblemish.errors import ConfigError, MissingDependencyError, ModelError
from unblemish.export.options import ExportOptions

LATENT, IMAGE, LOGIT, FEATURES = "z", "image", "logit", "features"


@dataclass(frozen=True)
class Original:
    """An ONNX file as given: `latent` is the name of its input, `shape` that of one latent."""

    content: bytes
    latent: str
    image: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A generator and its company, before gradients.

    Args:
        kind: vae, pggan, burgess, onnx.
        generator: 'z' (batch, latent) -> 'image' (batch, C, H, W).
        trainable: the same with every weight an initialiser of its own, for fine-tuning.
        encoder: 'image' -> 'z'. discriminator: 'image' -> 'logit'.
        discriminator_features: 'image' -> a layer of the discriminator.
        oracles: torch networks behind the fields of these names, where there are any.
        original: the ONNX file as it was given, with the name and shape of its latent.
        parameters: weights of the generator.
    """

    kind: str
    generator: onnx.ModelProto
    latent: int
    channels: int
    height: int
    width: int
    low: float
    high: float
    parameters: int
    trainable: onnx.ModelProto
    encoder: onnx.ModelProto | None = None
    discriminator: onnx.ModelProto | None = None
    discriminator_features: onnx.ModelProto | None = None
    oracles: dict[str, Any] = field(default_factory=dict)
    original: Original | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)


def open_source(path: Path, options: ExportOptions) -> Source:
    """Read a checkpoint or an ONNX generator.

    Raises: ModelError where it cannot be read or converted; ConfigError where an option does not
    fit; MissingDependencyError where a checkpoint is given and torch is not installed.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is no file. Give a checkpoint or .onnx file.")
    if path.suffix.lower() == ".onnx":
        from unblemish.export.onnx_source import open_onnx

        _refuse_missing_discriminator(path, options)
        return open_onnx(path, options)
    if options.latent_input or options.image_output or options.value_range:
        raise ConfigError(
            f"{path} is no .onnx file: a checkpoint knows its latent, image and range. Leave out "
            "--latent-input, --image-output and --range."
        )
    return _open_checkpoint(path, options)


def _refuse_missing_discriminator(path: Path, options: ExportOptions) -> None:
    """Raises: ConfigError where a discriminator is asked for and no file of its own is given."""
    if options.discriminator:
        raise ConfigError(f"{path} holds no discriminator. Leave out --discriminator.")
    if options.discriminator_layer and options.discriminator_onnx is None:
        raise ConfigError(
            f"{path} holds no discriminator. Give its ONNX file with --discriminator-onnx, or "
            "leave out --discriminator-layer."
        )


def _open_checkpoint(path: Path, options: ExportOptions) -> Source:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("torch", "train", "exporting a checkpoint") from error
    from unblemish.export.from_torch import to_onnx
    from unblemish.export.models.checkpoint import load_model

    model = load_model(path)
    if model.discriminator is None:
        _refuse_missing_discriminator(path, options)
    picture = (model.channels, model.size, model.size)

    def part(network: Any, shape: tuple[int, ...], names: tuple[str, str]) -> onnx.ModelProto:
        return to_onnx(network, shape, input_name=names[0], output_name=names[1])

    wanted = {
        "encoder": model.encoder if options.encoder else None,
        "discriminator": model.discriminator if options.discriminator else None,
        "discriminator_features": _discriminator_layer(model.discriminator, options),
    }
    encoder, discriminator = wanted["encoder"], wanted["discriminator"]
    layer = wanted["discriminator_features"]
    generator = part(model.generator, (model.latent,), (LATENT, IMAGE))
    trainable = generator
    if options.finetune:
        trainable = to_onnx(
            model.trainable or model.generator,
            (model.latent,),
            input_name=LATENT,
            output_name=IMAGE,
            fold=False,
        )
    return Source(
        model.kind, generator, model.latent, model.channels, model.size, model.size,
        model.low, model.high, sum(p.numel() for p in model.generator.parameters()), trainable,
        encoder=part(encoder, picture, (IMAGE, LATENT)) if encoder is not None else None,
        discriminator=(
            part(discriminator, picture, (IMAGE, LOGIT)) if discriminator is not None else None
        ),
        discriminator_features=(
            part(layer, picture, (IMAGE, FEATURES)) if layer is not None else None
        ),
        oracles={
            "generator": model.generator,
            **{name: network for name, network in wanted.items() if network is not None},
        },
        preprocess=dict(model.preprocess),
    )  # fmt: skip


def _discriminator_layer(network: Any, options: ExportOptions) -> Any:
    """The layer of a PGGAN's discriminator that is asked for, or None."""
    from unblemish.export.models.pggan import DiscriminatorFeatures

    if options.discriminator_layer is None or options.discriminator_onnx is not None:
        return None
    sides = [str(4 << stage) for stage in range(network.stage + 1)]
    if options.discriminator_layer not in sides:
        raise ConfigError(
            f"the layers of this discriminator are {', '.join(sides)}, their sides in pixels; "
            f"found --discriminator-layer {options.discriminator_layer}."
        )
    return DiscriminatorFeatures(network, int(options.discriminator_layer)).eval()
