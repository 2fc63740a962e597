"""What `fit` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from unblemish.calibration.features.fitter import MEMORY
from unblemish.errors import ConfigError

DetectorMethod = Literal["patchcore", "padim", "cflow"]
GeometryName = Literal["stretch", "letterbox", "tiles"]
PADIM_CHANNELS = 100


@dataclass(frozen=True)
class FitOptions:
    """Settings of one fit.

    Args:
        method: patchcore, padim or cflow.
        size: model image side, px; a multiple of the network's coarsest stride.
        channels: of the camera, 1 or 3; None to follow the first image.
        backbone: name of the network; None to recognise it from the weights.
        layers: whose outputs are the features; None for the method's own choice. Of an .onnx file:
            outputs or inner tensors by name; None for all outputs of four dimensions.
        mean, std: of an .onnx network, which takes (image - mean) / std; None for ImageNet's where
            it takes three channels, for 0 and 1 where one.
        selected: padim: channels drawn at random from all; None for 100, 0 for all.
        geometry, scale, overlap, white: how frames become model images, as `Preprocess`.
        shrinkage, epsilon, rank: padim, see `PadimFitter`.
        pool: patchcore: side of the mean over neighbouring cells, odd; 0 for none.
        share, bank: patchcore: share of the features kept, and the most; None for its own choice.
        blocks: cflow: couplings of a flow.
        steps, rate, noise, minutes: cflow: how it is trained, see `Training` and `CflowFitter`.
        most: normal images used at most, drawn at random.
        held_back: share of the normal images kept out, for calibration.
        folds: the method is fitted so many times more, each time without one part of the images,
            to learn how far images reach that it has not seen (`cross_fit`); 0 for never, None for
            4 where no images are held back and there are 64 or fewer.
        seed: fixes all random choices.
        memory: bytes to hold while fitting.
        threads: of the engine, and of training; None for all cores.
    """

    method: DetectorMethod
    size: int = 224
    channels: int | None = None
    backbone: str | None = None
    layers: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    selected: int | None = None
    geometry: GeometryName = "stretch"
    scale: float = 1.0
    overlap: float = 0.25
    white: float | None = None
    shrinkage: Literal["ledoit-wolf", "epsilon"] = "epsilon"
    epsilon: float = 0.01
    rank: int | None = None
    pool: int = 0
    share: float | None = None
    bank: int | None = None
    blocks: int = 8
    steps: int = 800
    rate: float = 1e-3
    noise: float = 0.5
    minutes: float | None = None
    most: int | None = None
    held_back: float = 0.0
    folds: int | None = None
    seed: int = 0
    memory: int = MEMORY
    threads: int | None = None

    def __post_init__(self) -> None:
        _choice("method", self.method, get_args(DetectorMethod))
        _choice("geometry", self.geometry, get_args(GeometryName))
        _choice("shrinkage", self.shrinkage, ("ledoit-wolf", "epsilon"))
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels must be 1 (grey) or 3 (colour), not {self.channels}.")
        for name in ("size", "scale", "white", "epsilon", "rank", "share", "bank", "most", "blocks",
                     "steps", "rate", "minutes", "memory", "threads"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}.")
        if not 0 <= self.held_back < 1:
            raise ConfigError(f"held_back must lie in [0, 1); found {self.held_back}.")
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise ConfigError(f"folds must be 2 or more, or 0 for none; found {self.folds}.")
        if self.pool < 0 or (self.pool and self.pool % 2 == 0):
            raise ConfigError(f"pool must be odd, or 0 for none; found {self.pool}.")
        if not 0 <= self.noise < 10:
            raise ConfigError(f"noise must lie in [0, 10); found {self.noise}.")
        if not 0 <= self.overlap < 0.9:
            raise ConfigError(f"overlap must lie in [0, 0.9); found {self.overlap}.")
        if self.selected is not None and self.selected < 0:
            raise ConfigError(f"selected must be 0 (all) or more; found {self.selected}.")


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; found '{value}'.")
