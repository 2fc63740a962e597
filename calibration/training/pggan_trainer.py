"""Progressive growing: non-saturating logistic loss with a gradient penalty on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unblemish.calibration.training.ema import MovingAverage
from unblemish.calibration.training.options import TrainOptions
from unblemish.export.models.checkpoint import settings_of
from unblemish.export.models.pggan import Discriminator, Generator, PgganSettings, pggan_widths

LATENT, BASE = 512, 8192
PENALTY = 2e-4  # times pixels over batch: larger images need a flatter discriminator
LEAST_PENALTY = 0.1
PENALTY_EVERY = 8  # updates; the penalty's gradient is scaled up accordingly
LAST_SHARE = 0.4  # share of the run spent at the full size after growing


def growth_at(progress: float, stages: int) -> tuple[int, float]:
    """Stage and fade at a share of the run.

    The first stage gets one part of the growing time, every further one two: one to fade in, one
    to settle; then `LAST_SHARE` of the run remains for the full size.

    Args:
        progress: 0..1.
        stages: number of sizes.
    Returns: stage (0 is 4 pixels), share of the newest scale.
    """
    if progress >= 1.0 - LAST_SHARE or stages == 1:
        return stages - 1, 1.0
    parts = progress / (1.0 - LAST_SHARE) * (2 * stages - 1)
    stage = int((parts + 1) // 2)
    return stage, min(1.0, parts - (2 * stage - 1)) if stage else 1.0


def real_at(images: Tensor, stage: int, stages: int, fade: float) -> Tensor:
    """Images at the size of `stage`, blended with their coarser version while fading in."""
    small = F.avg_pool2d(images, 1 << (stages - 1 - stage))
    if fade < 1.0:
        coarse = F.interpolate(F.avg_pool2d(small, 2), scale_factor=2.0, mode="nearest")
        small = fade * small + (1.0 - fade) * coarse
    return small


class PgganTrainer:
    """Generator, discriminator, two Adams and the generator's moving average."""

    kind = "pggan"

    def __init__(self, options: TrainOptions, channels: int) -> None:
        self.options = options
        widths = pggan_widths(options.size, options.width or BASE)
        self.settings = PgganSettings(options.size, channels, options.latent or LATENT, widths)
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = Generator(self.settings).to(self.device)
        self.critic = Discriminator(self.settings).to(self.device)
        self.average = MovingAverage(self.generator)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), betas=(0.0, 0.99))
            for network in (self.generator, self.critic)
        ]
        self.bfloat16 = False  # the gradient penalty needs float32
        self.progress = 0.0

    def begin(self, draw: Callable[[int], Tensor]) -> None:
        """Growing starts from random weights."""

    def step(self, images: Tensor, generator: torch.Generator, step: int, lr: float) -> float:
        """One update of each network. Returns the sum of both losses."""
        self._grow()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        stages = len(self.settings.widths)
        real = real_at(images.to(self.device), self.generator.stage, stages, self.generator.fade)
        critic_loss = self._update_critic(real, generator, step)
        generator_loss = self._update_generator(len(real), generator)
        self.average.update(self.generator, step)
        return critic_loss + generator_loss

    def _grow(self) -> None:
        stage, fade = growth_at(self.progress, len(self.settings.widths))
        for network in (self.generator, self.critic, self.average.network):
            network.stage, network.fade = stage, fade

    def _latents(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.settings.latent, generator=generator).to(self.device)

    def _update_critic(self, real: Tensor, generator: torch.Generator, step: int) -> float:
        with torch.no_grad():
            fake = self.generator(self._latents(len(real), generator))
        penalised = step % PENALTY_EVERY == 0
        real = real.detach().requires_grad_(penalised)
        logits = self.critic(real)
        loss = F.softplus(-logits).mean() + F.softplus(self.critic(fake)).mean()
        total = loss
        if penalised:
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            weight = max(LEAST_PENALTY, PENALTY * real[0, 0].numel() / len(real))
            total = loss + 0.5 * weight * PENALTY_EVERY * slope.square().sum((1, 2, 3)).mean()
        self._descend(1, total)
        return float(loss.detach())

    def _update_generator(self, count: int, generator: torch.Generator) -> float:
        self.critic.requires_grad_(False)
        loss = F.softplus(-self.critic(self.generator(self._latents(count, generator)))).mean()
        self._descend(0, loss)
        self.critic.requires_grad_(True)
        return float(loss.detach())

    def _descend(self, which: int, loss: Tensor) -> None:
        self.optimisers[which].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers[which].step()

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """A GAN has no encoder, hence no reconstruction figure; says how far it has grown."""
        network = self.average.network
        return {"stage_pixels": float(4 << network.stage), "fade": network.fade}

    @torch.no_grad()
    def preview(self, images: Tensor) -> list[Tensor]:
        """Rows of the sample grid: images and two rows of samples, at the full size."""
        generator = torch.Generator().manual_seed(0)
        rows = [images]
        for _ in range(2):
            samples = self.average.network(self._latents(len(images), generator)).cpu()
            rows.append(F.interpolate(samples, images.shape[2:], mode="nearest"))
        return rows

    def settings_plain(self) -> dict[str, Any]:
        """Settings of the networks, as a checkpoint stores them."""
        return settings_of(self.settings)

    def weights(self) -> dict[str, Tensor]:
        """The generator's moving average."""
        return dict(self.average.network.state_dict())

    def discriminator(self) -> dict[str, Tensor] | None:
        """The discriminator's weights."""
        return dict(self.critic.state_dict())

    def growth(self) -> dict[str, float]:
        """Stage and fade."""
        return {"stage": float(self.generator.stage), "fade": self.generator.fade}

    def state(self) -> dict[str, Any]:
        """What another run needs to go on exactly."""
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `weights` and `state`."""
        self.average.network.load_state_dict(dict(weights))
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
