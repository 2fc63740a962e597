"""Training of the VAE with the learned decoder variance in closed form."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unblemish.calibration.training.network_trainer import NetworkTrainer
from unblemish.calibration.training.options import TrainOptions
from unblemish.export.models.vae import Vae, VaeSettings

LATENT = 256


def vae_loss(
    image: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor | None, beta: float
) -> Tensor:
    """Negative evidence bound per image element, the decoder's variance at its optimum.

    With D elements, e^2 the mean squared error of the batch, and the Gaussian likelihood's variance
    at its maximiser e^2:

        loss = log(e^2) / 2 + beta / D * mean_batch KL(q(z|x) || N(0, 1))

    As the error falls its gradient grows, so that the balance needs no tuning; without
    `log_variance` (a plain autoencoder) the first term stands alone.
    Source: Rybkin et al. 2021 (sigma-VAE).
    """
    error = (reconstruction.float() - image).square().mean()
    loss = 0.5 * torch.log(error + 1e-8)
    if log_variance is not None:
        mean, log_variance = mean.float(), log_variance.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss = loss + beta * divergence / image[0].numel()
    return loss


class VaeTrainer(NetworkTrainer[Vae]):
    """Training of `vae_loss`; with `beta` 0 of a plain autoencoder."""

    kind = "vae"

    def __init__(self, options: TrainOptions, channels: int) -> None:
        settings = VaeSettings(
            options.size, channels, options.latent or LATENT, options.width or VaeSettings.width,
            variational=options.beta > 0,
        )  # fmt: skip
        super().__init__(options, partial(Vae, settings))

    def _silent(self) -> tuple[nn.Module | None, ...]:
        network = self.network
        return network.encoder.mean, network.encoder.log_variance, network.decoder.image

    def _prepared(self, images: Tensor) -> Tensor:
        return images

    def _loss(self, image: Tensor, found: Any) -> Tensor:
        reconstruction, mean, log_variance = found
        return vae_loss(image, reconstruction, mean, log_variance, self.options.beta)

    def _image(self, found: Any) -> Tensor:
        reconstruction: Tensor = found[0]
        return reconstruction

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Root mean square error of decoded means, unit: share of the intensity range."""
        errors = [
            (self._decoded(part) - part).square().mean((1, 2, 3))
            for part in torch.split(images, 16)
        ]
        return {"held_back_rmse": float(torch.cat(errors).mean().sqrt() / 2)}

    @torch.no_grad()
    def preview(self, images: Tensor) -> list[Tensor]:
        """Rows of the sample grid: images, their reconstructions, decoded random latents."""
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(len(images), self.network.settings.latent, generator=generator)
        samples = self.average.network.decoder(z.to(self.device)).float().cpu()
        return [images, self._decoded(images), samples]
