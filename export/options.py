"""What an export is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from unblemish.errors import ConfigError

METHODS = ("rgi", "energy")
GEOMETRIES = ("stretch", "letterbox", "tiles")
TARGETS = ("tensorrt",)


@dataclass(frozen=True)
class ExportOptions:
    """Settings of one export.

    Args:
        name: of the bundle; None for the file name of its folder.
        method: rgi or energy; None for energy where the source is an autoencoder, else rgi. With
            energy a generator and its encoder are taken together as an autoencoder.
        encoder: include the encoder, which gives the start value of a search, where there is one.
        discriminator: include the discriminator as a penalty; an error where there is none.
        discriminator_layer: include this layer of the discriminator, for AnoGAN: of a PGGAN its
            side in pixels ('4' is the last), of an ONNX discriminator the name of a tensor.
        discriminator_onnx: ONNX discriminator of images as the generator makes them; without a
            layer its outputs count.
        features: ONNX feature extractor for a perceptual loss of weight `feature_weight`, or None.
        finetune: include graphs with free weights, for R-RGI without torch.
        latent: autoencoders: include decoder and encoder apart, for a search of the code.
        latent_input: name of the latent where an ONNX model has several inputs.
        image_output: name of the image where an ONNX model has several outputs.
        value_range: model intensities of black and white, of ONNX models; None reads them off the
            last operator (Tanh, Sigmoid) or fails.
        geometry: stretch, letterbox, tiles; None as in training, else stretch.
        scale: tiles only: model pixels per native pixel; None as in training, else 1.
        overlap: tiles only: share of a tile's side.
        image_tolerance: largest difference of an image allowed, share of the intensity range.
        gradient_tolerance: relative l2 error of a gradient allowed, on the best of the latents.
        seed: of the latents that parity is measured on.
        target: 'tensorrt': graphs that TensorRT would refuse are an error; or None.
    """

    name: str | None = None
    method: str | None = None
    encoder: bool = True
    discriminator: bool = False
    discriminator_layer: str | None = None
    discriminator_onnx: Path | None = None
    features: Path | None = None
    feature_weight: float = 1.0
    finetune: bool = False
    latent: bool = False
    latent_input: str | None = None
    image_output: str | None = None
    value_range: tuple[float, float] | None = None
    geometry: str | None = None
    scale: float | None = None
    overlap: float | None = None
    image_tolerance: float = 1e-4
    gradient_tolerance: float = 2e-3
    seed: int = 0
    target: str | None = None

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; found '{self.method}'.")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(
                    f"the range must be LOW,HIGH with LOW < HIGH; found {low},{high}."
                )
        if self.target not in (None, *TARGETS):
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}; got '{self.target}'.")
        if self.geometry not in (None, *GEOMETRIES):
            raise ConfigError(
                f"geometry must be one of {', '.join(GEOMETRIES)}; found '{self.geometry}'."
            )
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ConfigError(f"scale must be a positive number; found {self.scale}.")
        if self.overlap is not None and not 0 <= self.overlap < 0.9:
            raise ConfigError(f"overlap must lie in [0, 0.9); found {self.overlap}.")
        if not 0 < self.feature_weight < math.inf:
            raise ConfigError(f"feature weight must be positive; found {self.feature_weight}.")
        if not (self.image_tolerance > 0 and self.gradient_tolerance > 0):
            raise ConfigError("tolerances of the parity gate must be positive.")


def parse_range(text: str) -> tuple[float, float]:
    """Read 'LOW,HIGH'. Raises: ConfigError where it is something else."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--range wants LOW,HIGH, such as -1,1; found '{text}'.") from error
    return low, high
