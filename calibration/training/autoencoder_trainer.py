"""Training of the autoencoders of the energy projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unblemish.calibration.training.ema import MovingAverage
from unblemish.calibration.training.energy_losses import (
    divergence,
    dssim_map,
    gaussian_terms,
    reconstruction_loss,
)
from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.ppca import fit_linear_part, samples_for
from unblemish.export.models.autoencoder import Autoencoder, AutoencoderSettings, Reconstruction
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS
from unblemish.export.models.checkpoint import settings_of

LATENT, WIDTH = 100, 32  # as published
LEAST_ERROR = 1e-8  # of a mean square whose logarithm is taken
GENTLE = 0.05  # rate of the layers that start silent
# Side of the linear map's image, by channels: its weights stay below half of a bundle of 10 MB.
LARGEST_CANVAS = {1: 64, 3: 32}
PART = 16  # images in one pass without gradient


class AutoencoderTrainer:
    """One network, one Adam, one moving average.

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
        self.options = options
        self.kind: str = options.model
        self.loss = AUTOENCODERS[options.model].loss
        variances = AUTOENCODERS[options.model].variances
        variance = options.variance if options.variance in variances else variances[0]
        self.settings = AutoencoderSettings(
            options.size, channels, options.latent or LATENT, options.width or WIDTH,
            variance,  # type: ignore[arg-type]
            _canvas(options.size, channels) if options.linear else 0,
        )  # fmt: skip
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = Autoencoder(self.settings).to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = MovingAverage(self.network)
        self.optimiser = torch.optim.Adam(self._groups(), betas=(0.9, 0.99))
        self.bfloat16 = False
        self.progress = 0.0

    def _groups(self) -> list[dict[str, Any]]:
        """Layers that start silent, beside a linear part that is right already, move gently."""
        network = self.network
        silent = (network.encoder.mean, network.decoder.image) if self.settings.canvas else ()
        gentle = {id(p) for layer in silent for p in layer.parameters()}
        free = [p for p in network.parameters() if p.requires_grad]
        return [
            {"params": [p for p in free if id(p) not in gentle], "factor": 1.0},
            {"params": [p for p in free if id(p) in gentle], "factor": GENTLE},
        ]

    def begin(self, draw: Callable[[int], Tensor]) -> None:
        """Fit the linear part, or else start from the mean intensity; `draw` gives images."""
        if self.settings.canvas:
            images = _unit(draw(samples_for(self.settings.latent)))
            fit_linear_part(self.network, images.to(self.device))
        else:
            bias = self.network.decoder.image.bias
            assert bias is not None
            bias.data.copy_(_unit(draw(PART)).mean((0, 2, 3)))
        self.average = MovingAverage(self.network)

    def step(self, images: Tensor, generator: torch.Generator, step: int, lr: float) -> float:
        """One update. `images`: (batch, C, size, size) in [-1, 1]. Returns the loss."""
        unit = _unit(images).to(self.device, memory_format=torch.channels_last)
        noise = torch.randn(len(images), self.settings.latent, generator=generator)
        self.network.train()
        found = self.network(unit, noise.to(self.device))
        loss = self._loss(unit, found)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimiser.step()
        self.average.update(self.network, step)
        return float(loss.detach())

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

    def _decoded(self, images: Tensor) -> Tensor:
        reconstruction: Tensor = self.average.network(_unit(images).to(self.device)).image
        return reconstruction.cpu()

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

    def settings_plain(self) -> dict[str, Any]:
        """Settings of the network, as a checkpoint stores them."""
        return settings_of(self.settings)

    def weights(self) -> dict[str, Tensor]:
        """The moving average."""
        return dict(self.average.network.state_dict())

    def discriminator(self) -> dict[str, Tensor] | None:
        """An autoencoder has none."""
        return None

    def growth(self) -> dict[str, float]:
        """An autoencoder does not grow."""
        return {}

    def state(self) -> dict[str, Any]:
        """What another run needs to go on exactly."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `weights` and `state`."""
        self.average.network.load_state_dict(dict(weights))
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def _canvas(size: int, channels: int) -> int:
    """Largest side that divides `size` and is within `LARGEST_CANVAS`."""
    return max(side for side in range(1, LARGEST_CANVAS[channels] + 1) if size % side == 0)


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], the intensities of autoencoders."""
    return 0.5 * images + 0.5
