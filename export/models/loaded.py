"""A generator or an autoencoder read from a checkpoint, ready for export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from unblemish.export.models.autoencoder import Autoencoder


@dataclass(frozen=True)
class LoadedModel:
    """Networks in inference mode, folded, float32 on the CPU, without gradients.

    Args:
        kind: pggan, vae, burgess.
        generator: z -> image.
        latent: length of z.
        size: image side in pixels.
        channels: 1 or 3.
        low: model intensity of black; `high` that of white.
        encoder: image -> latent mean, where the model has one.
        trainable: the generator as it was trained, for fine-tuning: constants that scale its
            weights stay apart from them, because they set how far an update reaches.
        discriminator: image -> logit of independent images, where the model has one.
        preprocess: geometry, scale and overlap the model was trained with.
    """

    kind: str
    generator: nn.Module
    latent: int
    size: int
    channels: int
    low: float
    high: float
    encoder: nn.Module | None = None
    discriminator: nn.Module | None = None
    trainable: nn.Module | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedAutoencoder:
    """An autoencoder in inference mode, float32 on the CPU, without gradients.

    Args:
        kind: name in `AUTOENCODERS`.
        preprocess: geometry, scale and overlap it was trained with.
        losses: [share, L_r that this share of the training images does not exceed].
        noise: root mean square error on held-back normal images, share of the intensity range; 0
            where not known.
    """

    kind: str
    network: Autoencoder
    preprocess: dict[str, Any] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    noise: float = 0.0


class MeanOf(nn.Module):
    """An encoder reduced to the latent mean, the start value of a search."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, channels, size, size). Returns (batch, latent)."""
        mean: Tensor = self.encoder(image)[0]
        return mean


def settle(network: nn.Module) -> nn.Module:
    """Inference mode, float32, no gradients."""
    return network.float().eval().requires_grad_(False)
