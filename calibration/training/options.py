"""What a training run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from unblemish.errors import ConfigError
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS

Kind = Literal["vae", "pca", "pggan", "l2ae", "dsae", "ae-vae", "gamma-vae"]
GeometryName = Literal["stretch", "letterbox", "tiles"]
Precision = Literal["auto", "float32", "bfloat16"]
DecoderVariance = Literal["global", "pixel"]
AutoencoderNetwork = Literal["conv", "resnet"]
PATIENCE = 20  # checks, of autoencoders
AUGMENTATIONS = ("shift", "rotate", "brightness", "hflip", "vflip")


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run; what a resumed run may not change is checked by `same_run`.

    Args:
        model: vae; pca, its linear part alone, in closed form; or pggan, progressive growing, which
            wants a GPU. These are generators, for RGI. For the energy projection: l2ae and dsae,
            autoencoders trained with squared error or DSSIM; ae-vae, the same network as VAE;
            gamma-vae, with learned decoder variance.
        size: model image side, pixels, power of two (pca: any; autoencoders: multiple of 16).
        channels: 1, 3, or None to follow the first image.
        latent: length of the latent vector; None for 256 (vae), 512 (pggan) or 100.
        width: vae: feature maps at full size; autoencoders: of the first layer; pggan: base of the
            width table; None for the default.
        beta: vae: weight of the latent's divergence from the prior; 0 trains a plain autoencoder.
        variance: gamma-vae: one learned scale for all elements, or one for each.
        network: autoencoders: conv, the published one, or resnet, with residual blocks, for faces
            and other colour images.
        linear: autoencoders: let the convolutions learn what a fixed linear map, PCA in closed
            form, leaves; without it the network is the published one, which learns far slower.
        patience: checks of the held-back loss, 50 updates apart, without improvement after which
            training ends, with the best weights; 0 never; None for 20 of autoencoders, else 0.
        steps: updates; None where only `minutes` limits the run.
        minutes: training time in all, earlier parts of a resumed run included.
        batch: images per update.
        lr: Adam's step size; None for 1e-3.
        geometry: how frames become model images, as at inspection.
        scale: tiles only: model pixels per native pixel.
        white: intensity of white in the images; None for the largest of their dtype.
        augment: names out of `AUGMENTATIONS`; only what normal parts may vary in belongs here.
        held_back: share of the images kept out of training, for the reconstruction figure.
        seed: fixes initial weights, split, batches, augmentation and noise.
        precision: auto measures both on this machine and takes the faster.
        checkpoint_seconds: time between checkpoints.
    """

    model: Kind = "vae"
    size: int = 128
    channels: int | None = None
    latent: int | None = None
    width: int | None = None
    beta: float = 1.0
    variance: DecoderVariance = "global"
    network: AutoencoderNetwork = "conv"
    linear: bool = True
    patience: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int = 16
    lr: float | None = None
    geometry: GeometryName = "stretch"
    scale: float = 1.0
    white: float | None = None
    augment: tuple[str, ...] = ("shift", "brightness")
    held_back: float = 0.1
    seed: int = 0
    precision: Precision = "auto"
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        _choice("model", self.model, get_args(Kind))
        _choice("geometry", self.geometry, get_args(GeometryName))
        _choice("precision", self.precision, get_args(Precision))
        _choice("variance", self.variance, get_args(DecoderVariance))
        _choice("network", self.network, get_args(AutoencoderNetwork))
        if self.network != "conv" and self.model not in AUTOENCODERS:
            raise ConfigError(
                f"network {self.network} is for the models {', '.join(AUTOENCODERS)}; found model "
                f"{self.model}. Leave --network out, or choose one of them."
            )
        for name in self.augment:
            _choice("augment", name, AUGMENTATIONS)
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels must be 1 (grey) or 3 (colour), not {self.channels}.")
        positive = "size", "latent", "width", "steps", "minutes", "batch", "lr", "scale", "white"
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}.")
        if self.steps is None and self.minutes is None:
            raise ConfigError("say how long to train: --steps N, --minutes N, or both.")
        if not 0 <= self.held_back < 0.9 or self.beta < 0:
            raise ConfigError(
                f"held_back must lie in [0, 0.9) and beta be >= 0; found {self.held_back} "
                f"and {self.beta}."
            )
        if self.patience is not None and (
            self.patience < 0 or (self.patience and (self.model == "pggan" or not self.held_back))
        ):
            raise ConfigError(
                "patience must be >= 0, and where it is not 0 needs held-back images and a model "
                f"other than pggan; found {self.patience}."
            )

    @property
    def checks(self) -> int:
        """`patience`, or the model's own."""
        if self.patience is not None:
            return self.patience
        return PATIENCE if self.model in AUTOENCODERS and self.held_back else 0

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        values = asdict(self)
        values["augment"] = list(self.augment)
        return values


# A resumed run continues the same optimisation: these fix it. Length and checkpoints may change.
_FIXED = (
    "model", "size", "latent", "width", "beta", "variance", "network", "linear", "batch", "lr",
    "geometry", "scale", "augment", "held_back", "seed", "white",
)  # fmt: skip


def same_run(options: TrainOptions, earlier: Mapping[str, Any]) -> None:
    """Check that `options` continue the run that `earlier` (from `plain`) describes.

    Raises: ConfigError naming the settings that differ.
    """
    now = options.plain()
    # What an earlier version did not know was as the default is.
    before = {name: earlier.get(name, getattr(TrainOptions, name)) for name in _FIXED}
    different = [name for name in _FIXED if now[name] != before[name]]
    if different:
        listed = ", ".join(f"{n} was {before[n]}, now {now[n]}" for n in different)
        raise ConfigError(
            f"the checkpoint belongs to a run with other settings: {listed}. Resume with the "
            "settings of the first run, or choose another --out."
        )


def _choice(name: str, value: str, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        listed = ", ".join(cast("tuple[str, ...]", choices))
        raise ConfigError(f"{name} must be one of {listed}; found '{value}'.")
