"""A compact convolutional (variational) autoencoder whose decoder serves as a generator.

Encoder and decoder are a linear map plus a convolutional network. The linear map is the optimum in
closed form, probabilistic PCA, and stays fixed; the network learns what the linear map leaves. It
halves and doubles the image down to 4 pixels; every convolution is followed by batch
normalisation, which `folded` multiplies into the weights. Without the variational part the latent
is normalised to mean 0 and variance 1 over the training images, so that a standard normal start
value makes sense for both.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unblemish.errors import ConfigError

LEAK = 0.2


@dataclass(frozen=True)
class VaeSettings:
    """Shape of a VAE: `width` feature maps at `size` pixels, doubling with every halving.

    `linear` is the side of the linear map's image: 0 for none, None for at most 128^2 values.
    """

    size: int = 128
    channels: int = 1
    latent: int = 128
    width: int = 16
    widest: int = 256
    variational: bool = True
    linear: int | None = None

    def __post_init__(self) -> None:
        if self.size < 8 or self.size > 512 or self.size & (self.size - 1):
            raise ConfigError(
                f"a VAE makes images of 8, 16, ... 512 pixels, not {self.size}. "
                "Choose a power of two."
            )
        if self.linear is None:
            fitting = 128 if self.channels == 1 else 64
            object.__setattr__(self, "linear", min(self.size, fitting))
        if self.linear and (self.linear > self.size or self.size % self.linear):
            raise ConfigError(f"linear must divide the size {self.size}; found {self.linear}.")
        if min(self.channels, self.latent, self.width) < 1 or self.widest < self.width:
            raise ConfigError(
                "a VAE needs positive channels, latent and width, and widest >= width; found "
                f"{self.channels}, {self.latent}, {self.width} and {self.widest}."
            )

    @property
    def canvas(self) -> int:
        """Side of the linear map's image, 0 for none."""
        return self.linear or 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Feature maps at `size`, size / 2, ... 4 pixels."""
        halvings = int(math.log2(self.size)) - 2
        return tuple(min(self.widest, self.width << k) for k in range(halvings + 1))


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(LEAK),
    )


def fixed_linear(inputs: int, outputs: int) -> nn.Linear | None:
    """A fixed linear map, zero until it is fitted; None where it has no inputs or outputs."""
    if not inputs or not outputs:
        return None
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def silence(*layers: nn.Linear | nn.Conv2d | nn.ConvTranspose2d | None) -> None:
    """Let layers give zeros until they have learned otherwise."""
    for layer in layers:
        if layer is not None:
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def exactly(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply `layer` in float32 even under autocast: its sums run over 16,384 values."""
    if not torch.is_autocast_enabled(x.device.type):
        plain: Tensor = layer(x)
        return plain
    with torch.autocast(x.device.type, enabled=False):
        exact: Tensor = layer(x.float())
        return exact


class Encoder(nn.Module):
    """image -> mean and log variance of the latent; only the mean where not variational."""

    def __init__(self, settings: VaeSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.widths
        self.scales = nn.Sequential(
            *(_block(old, new, 4, 2) for old, new in pairwise((settings.channels, *widths[1:])))
        )
        self.mean = nn.Linear(16 * widths[-1], settings.latent)
        self.log_variance = (
            nn.Linear(16 * widths[-1], settings.latent) if settings.variational else None
        )
        self.norm = None if settings.variational else nn.BatchNorm1d(settings.latent, affine=False)
        self.linear = fixed_linear(settings.channels * settings.canvas**2, settings.latent)
        if self.linear is not None:
            silence(self.mean, self.log_variance)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """image: (batch, channels, size, size), about [-1, 1]. Returns (batch, latent) each."""
        x = self.scales(image).flatten(1)
        mean: Tensor = self.mean(x)
        if self.linear is not None:
            picture = F.avg_pool2d(image, self.settings.size // self.settings.canvas)
            mean = mean + exactly(self.linear, picture.flatten(1))
        if self.norm is not None:
            return self.norm(mean), None
        assert self.log_variance is not None
        return mean, self.log_variance(x).clamp(-12.0, 4.0)


class Decoder(nn.Module):
    """z -> image, about [-1, 1]: nearest doubling and 3x3 convolutions."""

    def __init__(self, settings: VaeSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.widths[::-1]
        self.start = nn.Linear(settings.latent, 16 * widths[0])
        self.first = _block(widths[0], widths[0])
        self.scales = nn.ModuleList(
            # The last scale costs the most per convolution: one is enough there.
            nn.Sequential(_block(old, new), *([_block(new, new)] if new > widths[-1] else []))
            for old, new in pairwise(widths)
        )
        self.image = nn.Conv2d(widths[-1], settings.channels, 3, padding=1)
        self.linear = fixed_linear(settings.latent, settings.channels * settings.canvas**2)
        if self.linear is not None:
            silence(self.image)

    def forward(self, z: Tensor) -> Tensor:
        """z: (batch, latent), prior standard deviations. Returns (batch, channels, size, size)."""
        x = self.start(z).reshape(-1, self.settings.widths[-1], 4, 4)
        x = self.first(x)
        for scale in self.scales:
            x = scale(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        image: Tensor = self.image(x)
        return image if self.linear is None else image + self._linear_image(z)

    def _linear_image(self, z: Tensor) -> Tensor:
        assert self.linear is not None
        s = self.settings
        canvas = exactly(self.linear, z).reshape(-1, s.channels, s.canvas, s.canvas)
        if s.canvas == s.size:
            return canvas
        return F.interpolate(canvas, size=(s.size, s.size), mode="bilinear", align_corners=False)


class Vae(nn.Module):
    """Encoder and decoder; `forward` is what training needs."""

    def __init__(self, settings: VaeSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or VaeSettings()
        self.encoder = Encoder(self.settings)
        self.decoder = Decoder(self.settings)

    def forward(
        self, image: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reconstruct `image` from mean + exp(log variance / 2) noise.

        Args:
            image: (batch, channels, size, size).
            noise: (batch, latent) standard normal; None decodes the mean.
        Returns: reconstruction, mean, log variance (None where not variational).
        """
        mean, log_variance = self.encoder(image)
        z = mean
        if noise is not None and log_variance is not None:
            z = mean + torch.exp(0.5 * log_variance) * noise
        return self.decoder(z), mean, log_variance

    @torch.no_grad()
    def folded(self) -> Vae:
        """An equal network in inference mode without normalisation layers, for export."""
        result = copy.deepcopy(self).eval().requires_grad_(False)
        for block in list(result.modules()):
            if isinstance(block, nn.Sequential) and len(block) == 3:
                fold_block(block)
        if result.encoder.norm is not None:
            _fold_latent(result.encoder)
        return result


def fold_block(block: nn.Sequential) -> None:
    """Multiply the normalisation of (convolution, normalisation, activation) into its weights."""
    conv, norm = block[0], block[1]
    if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
        gain, shift = _affine(norm)
        outputs = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
        along = gain.reshape([-1 if axis == outputs else 1 for axis in range(4)])
        conv.weight = nn.Parameter(conv.weight * along, requires_grad=False)
        conv.bias = nn.Parameter(norm.bias - shift, requires_grad=False)
        block[1] = nn.Identity()


def _affine(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        gain = gain * norm.weight
    return gain, gain * norm.running_mean


def _fold_latent(encoder: Encoder) -> None:
    assert encoder.norm is not None
    gain, shift = _affine(encoder.norm)
    for layer in (encoder.mean, encoder.linear):
        if layer is not None:
            layer.weight.mul_(gain[:, None])
            layer.bias.mul_(gain)
    encoder.mean.bias.sub_(shift)
    encoder.norm = nn.Identity()  # type: ignore[assignment]
