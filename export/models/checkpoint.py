"""Read and write checkpoints. Nothing in one is executed: tensors and plain values only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unblemish.errors import ConfigError, ModelError
from unblemish.export.models.autoencoder import Autoencoder, AutoencoderSettings
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS
from unblemish.export.models.layouts import fill, load_known, pggan_model
from unblemish.export.models.loaded import LoadedAutoencoder, LoadedModel, MeanOf, settle
from unblemish.export.models.pca import Pca, PcaSettings
from unblemish.export.models.pggan import Discriminator, Generator, PgganSettings
from unblemish.export.models.vae import Vae, VaeSettings
from unblemish.files import atomic_file

FORMAT = "unblemish-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """One of our checkpoints.

    Args:
        kind: vae, pca, pggan or a name of `AUTOENCODERS`.
        settings: fields of `VaeSettings`, `PcaSettings`, `PgganSettings` or `AutoencoderSettings`.
        weights: the network's state dict (the moving average); for pggan the generator's.
        discriminator: state dict of the discriminator, pggan only.
        preprocess: geometry, scale, overlap, white of the training images.
        training: what training needs to go on: optimiser, step, random state, raw weights.
        growth: stage and fade of a pggan that has not grown to its end yet.
        figures: what training reports: reconstruction error on held-back images, steps, seconds.
        losses: autoencoders: [share, L_r that this share of the training images does not exceed].
    """

    kind: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    growth: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; `.safetensors` holds weights and settings alone, anything else everything.

    Raises: SourceError where the file cannot be written; the old one is then untouched.
    """
    with atomic_file(path) as stream:
        if path.suffix == ".safetensors":
            stream.write(_safetensors_bytes(checkpoint))
        else:
            torch.save({"format": FORMAT, "version": VERSION, **_shallow(checkpoint)}, stream)


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}


def _safetensors_bytes(checkpoint: Checkpoint) -> bytes:
    from safetensors.torch import save

    tensors = {f"weights.{name}": value for name, value in checkpoint.weights.items()}
    for name, value in (checkpoint.discriminator or {}).items():
        tensors[f"discriminator.{name}"] = value
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": checkpoint.kind,
        "settings": checkpoint.settings,
        "preprocess": checkpoint.preprocess,
        "growth": checkpoint.growth,
        "figures": checkpoint.figures,
        "losses": checkpoint.losses,
    }
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content: bytes = save(plain, {FORMAT: json.dumps(header)})
    return content


def read_content(path: Path) -> Mapping[str, Any]:
    """Read the tensors and plain values of a `.pt`, `.pth` or `.safetensors` file.

    Raises: ModelError where it is missing, truncated, no checkpoint, or holds code.
    """
    if not path.is_file():
        raise ModelError(f"checkpoint {path} does not exist or is no file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, expected a state_dict. "
            "Save with torch.save(network.state_dict(), path)."
        )
    return content


class _Settings:
    """Stands in for the settings object in pytorch_GAN_zoo's files: attributes and nothing else."""


def _read_torch(path: Path) -> Any:
    stand_ins: list[Any] = [
        (_Settings, f"{module}.BaseConfig")
        for module in ("models.utils.config", "pytorch_GAN_zoo.models.utils.config", "utils.config")
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ModelError(
                f"{path} holds Python objects besides tensors and plain values, which are never "
                "loaded because they could run code. Save the network's state_dict instead. "
                f"({_first_line(error)})"
            ) from error
        cause = "is truncated" if _began_as_zip(path) else "is damaged or no checkpoint"
        raise ModelError(
            f"{path} cannot be read: it {cause}. Copy it again. ({_first_line(error)})"
        ) from error


def _began_as_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            text = (stream.metadata() or {}).get(FORMAT)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read: it is damaged or no safetensors file. Copy it again. "
            f"({_first_line(error)})"
        ) from error
    if text is None:
        return tensors
    parts = {
        part: {
            n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")
        }
        for part in ("weights", "discriminator")
    }
    header = json.loads(text)
    return {**header, "weights": parts["weights"], "discriminator": parts["discriminator"] or None}


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of our checkpoints. Raises: ModelError as `read_content`, or where it is foreign."""
    content = read_content(path)
    if content.get("format") != FORMAT:
        raise ModelError(f"{path} was not written by unblemish train.")
    return _own(content, path)


def _own(content: Mapping[str, Any], path: Path) -> Checkpoint:
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ModelError(
            f"{path} has checkpoint version {version}, this unblemish knows up to {VERSION}. "
            "Upgrade unblemish."
        )
    try:
        return Checkpoint(
            **{n: content[n] for n in Checkpoint.__dataclass_fields__ if n in content}
        )
    except TypeError as error:
        raise ModelError(f"{path} lacks parts of a checkpoint: {error}. Train again.") from error


def build_vae(checkpoint: Checkpoint) -> Vae:
    """The trained VAE, not folded. Raises: ModelError where weights and settings disagree."""
    network = Vae(_settings(VaeSettings, checkpoint))
    fill(network, checkpoint.weights, "VAE checkpoint")
    return network


def build_pggan(checkpoint: Checkpoint) -> tuple[Generator, Discriminator | None]:
    """The trained networks, not folded. Raises: ModelError where weights and settings disagree."""
    settings = _settings(PgganSettings, checkpoint)
    generator = Generator(settings)
    fill(generator, checkpoint.weights, "PGGAN checkpoint")
    if checkpoint.growth:
        generator.stage = int(checkpoint.growth["stage"])
        generator.fade = float(checkpoint.growth["fade"])
    if checkpoint.discriminator is None:
        return generator, None
    discriminator = Discriminator(settings)
    fill(discriminator, checkpoint.discriminator, "PGGAN checkpoint")
    return generator, discriminator


def _settings(kind: type[Any], checkpoint: Checkpoint) -> Any:
    try:
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in checkpoint.settings.items()}
        return kind(**values)
    except (TypeError, AttributeError, ConfigError) as error:
        raise ModelError(f"{checkpoint.kind} checkpoint has wrong settings: {error}") from error


def _refuse_unfinished(generator: Generator, path: Path) -> None:
    grown = 4 << generator.stage
    if grown < generator.settings.size or generator.fade < 1.0:
        raise ModelError(
            f"{path} has grown to {grown} of {generator.settings.size} pixels, fade "
            f"{generator.fade:.2f}. Resume its training to the end before export."
        )


def build_autoencoder(checkpoint: Checkpoint) -> Autoencoder:
    """The trained network, not folded. Raises: ModelError where weights and settings disagree."""
    network = Autoencoder(_settings(AutoencoderSettings, checkpoint))
    fill(network, checkpoint.weights, f"{checkpoint.kind} checkpoint")
    return network


def load_autoencoder(path: Path) -> LoadedAutoencoder | None:
    """Read a checkpoint of an autoencoder; None where it is one of something else.

    Raises: ModelError as `read_content`, or where weights and settings disagree.
    """
    content = read_content(path)
    if content.get("format") != FORMAT or content.get("kind") not in AUTOENCODERS:
        return None
    checkpoint = _own(content, path)
    network = build_autoencoder(checkpoint).folded()
    settle(network)
    return LoadedAutoencoder(
        checkpoint.kind, network, checkpoint.preprocess, checkpoint.losses,
        checkpoint.figures.get("held_back_rmse", 0.0),
    )  # fmt: skip


def settings_of(
    settings: VaeSettings | PcaSettings | PgganSettings | AutoencoderSettings,
) -> dict[str, Any]:
    """Plain values of `settings`, as a checkpoint stores them."""
    return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(settings).items()}


def load_model(path: Path) -> LoadedModel:
    """Read any known checkpoint, ours or another project's, ready for export.

    Raises: ModelError as `read_content`, or naming the known layouts where none fits.
    """
    content = read_content(path)
    if content.get("format") != FORMAT:
        return load_known(content, str(path))
    checkpoint = _own(content, path)
    if checkpoint.kind == "vae":
        vae = build_vae(checkpoint).folded()
        s = vae.settings
        return LoadedModel(
            "vae", settle(vae.decoder), s.latent, s.size, s.channels, -1.0, 1.0,
            MeanOf(settle(vae.encoder)), preprocess=checkpoint.preprocess,
        )  # fmt: skip
    if checkpoint.kind == "pggan":
        generator, discriminator = build_pggan(checkpoint)
        _refuse_unfinished(generator, path)
        return replace(pggan_model(generator, discriminator), preprocess=checkpoint.preprocess)
    if checkpoint.kind == "pca":
        return _pca_model(checkpoint)
    raise ModelError(
        f"{path} holds a '{checkpoint.kind}', which is no generator; expected vae, pca or pggan."
    )


def _pca_model(checkpoint: Checkpoint) -> LoadedModel:
    pca = Pca(_settings(PcaSettings, checkpoint))
    fill(pca, checkpoint.weights, "PCA checkpoint")
    s = pca.settings
    return LoadedModel(
        "pca", settle(pca.decoder), s.latent, s.size, s.channels, -1.0, 1.0,
        settle(pca.encoder), preprocess=checkpoint.preprocess,
    )  # fmt: skip
