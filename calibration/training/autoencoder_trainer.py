"""Training of the autoencoders of the energy projection."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from unblemish.calibration.training.ema import MovingAverage
from unblemish.calibration.training.energy_losses import (
    divergence,
    dssim_map,
    gaussian_terms,
    reconstruction_loss,
)
from unblemish.calibration.training.network_trainer import NetworkTrainer
from unblemish.calibration.training.options import TrainOptions
from unblemish.export.models.autoencoder import Autoencoder, AutoencoderSettings, Reconstruction
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS

LATENT, WIDTH = 100, 32  # as published
LEAST_ERROR = 1e-8  # of a mean square whose logarithm is taken
# Side of the linear map's image, by channels: its weights stay below half of a bundle of 10 MB.
LARGEST_CANVAS = {1: 64, 3: 32}
PART = 16  # images in one pass without gradient


class AutoencoderTrainer(NetworkTrainer[Autoencoder]):
    """Training of the energy's L_r, and of the prior of VAEs.

    The loss per image element, with D elements, of a reconstruction y of x:

        l2ae       mean (x - y)^2
        dsae       mean (1 - SSIM(x, y)) / 2
        ae-vae     mean (x - y)^2 / 2 + beta KL / D
        gamma-vae  log(e^2) / 2 + beta KL / D, e^2 = mean (x - y)^2: the decoder's variance at its
                   maximiser, which is what learning it comes to; with a scale for every element
                   mean ((x - y)^2 / (2 g^2) + log g) + beta KL / D

    Source: seed 002, eq. 1 and section 4.1; Dai and Wipf 2019.
    """

    def __init__(self, options: TrainOptions, channels: int) -> None:
        self.kind: str = options.model
        self.loss = AUTOENCODERS[options.model].loss
        variances = AUTOENCODERS[options.model].variances
        variance = options.variance if options.variance in variances else variances[0]
        self.settings = AutoencoderSettings(
            options.size, channels, options.latent or LATENT, options.width or WIDTH,
            variance,  # type: ignore[arg-type]
            _canvas(options.size, channels) if options.linear else 0, options.network,
        )  # fmt: skip
        super().__init__(options, partial(Autoencoder, self.settings))

    def _silent(self) -> tuple[nn.Module | None, ...]:
        return self.network.encoder.mean, self.network.decoder.image

    def _prepared(self, images: Tensor) -> Tensor:
        return _unit(images)

    def _image(self, found: Reconstruction) -> Tensor:
        return found.image

    def begin(self, draw: Callable[[int], Tensor]) -> None:
        """Fit the linear part, or else start from the mean intensity; `draw` gives images."""
        super().begin(draw)
        if not self.settings.canvas:
            bias = self.network.decoder.image.bias
            assert bias is not None
            bias.data.copy_(_unit(draw(PART)).mean((0, 2, 3)))
            self.average = MovingAverage(self.network)

    def _loss(self, image: Tensor, found: Reconstruction) -> Tensor:
        if self.loss == "dssim":
            return dssim_map(image, found.image).mean()
        error = (image - found.image).square().mean()
        if found.log_variance is None:
            return error
        if found.log_scale is not None:
            likelihood = gaussian_terms(image, found.image, found.log_scale).mean()
        elif self.loss == "gaussian":
            likelihood = 0.5 * torch.log(error + LEAST_ERROR)
            self._remember_gamma(float(error.detach()))
        else:
            likelihood = 0.5 * error
        prior = divergence(found.mean, found.log_variance).mean()
        return likelihood + self.options.beta * prior / image[0].numel()

    def _remember_gamma(self, error: float) -> None:
        log_gamma = self.network.log_gamma
        assert isinstance(log_gamma, Tensor)
        log_gamma.fill_(0.5 * math.log(error + LEAST_ERROR))

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Mean L_r, and the root mean square error as a share of the intensity range."""
        errors = [
            (self._decoded(part) - _unit(part)).square().mean((1, 2, 3))
            for part in torch.split(images, PART)
        ]
        return {
            "held_back_rmse": float(torch.cat(errors).mean().sqrt()),
            "held_back_loss": float(self.losses(images).mean()),
        }

    @torch.no_grad()
    def losses(self, images: Tensor) -> Tensor:
        """L_r of images in [-1, 1] by the moving average, mean path, as the bundle's; (batch,)."""
        network = self.average.network
        log_gamma = getattr(network, "log_gamma", None)
        found = []
        for part in torch.split(images, PART):
            unit = _unit(part).to(self.device)
            found.append(reconstruction_loss(self.loss, unit, network(unit), log_gamma).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def preview(self, images: Tensor) -> list[Tensor]:
        """Rows of the sample grid: images, their reconstructions; of a VAE decoded random codes."""
        rows = [images, 2 * self._decoded(images) - 1]
        if self.settings.variational:
            generator = torch.Generator().manual_seed(0)
            code = torch.randn(len(images), self.settings.latent, generator=generator)
            drawn = self.average.network.decoder(code.to(self.device))[0]
            rows.append(2 * drawn.cpu() - 1)
        return rows


def _canvas(size: int, channels: int) -> int:
    """Largest side that divides `size` and is within `LARGEST_CANVAS`."""
    return max(side for side in range(1, LARGEST_CANVAS[channels] + 1) if size % side == 0)


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], the intensities of autoencoders."""
    return 0.5 * images + 0.5
