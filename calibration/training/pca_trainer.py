"""Fitting of probabilistic PCA: all of it happens at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.ppca import fit_maps, samples_for
from unblemish.export.models.checkpoint import settings_of
from unblemish.export.models.pca import Pca, PcaSettings

LATENT = 256


class PcaTrainer:
    """A closed form under the interface of training; its single update changes nothing."""

    kind = "pca"

    def __init__(self, options: TrainOptions, channels: int) -> None:
        self.settings = PcaSettings(options.size, channels, options.latent or LATENT)
        self.network = Pca(self.settings).requires_grad_(False)
        self.bfloat16 = False
        self.progress = 0.0

    def begin(self, draw: Callable[[int], Tensor]) -> None:
        """Fit both maps."""
        images = draw(samples_for(self.settings.latent)).flatten(1)
        fit_maps(self.network.encoder.linear, self.network.decoder.linear, images)

    def step(self, images: Tensor, generator: torch.Generator, step: int, lr: float) -> float:
        """Nothing is left to learn. Returns the mean squared error of the batch."""
        return float((self.network(images) - images).square().mean())

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Root mean square error of reconstructions, unit: share of the intensity range."""
        error = (self.network(images) - images).square().mean()
        return {"held_back_rmse": float(error.sqrt() / 2)}

    def preview(self, images: Tensor) -> list[Tensor]:
        """Rows of the sample grid: images, their reconstructions, decoded random latents."""
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(len(images), self.settings.latent, generator=generator)
        return [images, self.network(images), self.network.decoder(z)]

    def settings_plain(self) -> dict[str, Any]:
        """Settings of the maps, as a checkpoint stores them."""
        return settings_of(self.settings)

    def weights(self) -> dict[str, Tensor]:
        """Both maps."""
        return dict(self.network.state_dict())

    def discriminator(self) -> dict[str, Tensor] | None:
        """PCA has none."""
        return None

    def growth(self) -> dict[str, float]:
        """PCA does not grow."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing beside the weights."""
        return {}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `weights`."""
        self.network.load_state_dict(dict(weights))
