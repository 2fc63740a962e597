"""Progressive growing: generator and discriminator, in the parameter layout of pytorch_GAN_zoo.

Equalised learning rate: a layer computes c (W x + b) with He's constant c = sqrt(2 / fan_in), so
that every weight moves at the same rate. `folded` multiplies c into W and b once, for export.

Source: Karras et al. 2017; the generator of seed 000.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unblemish.errors import ConfigError

EPSILON = 1e-8


def pggan_widths(size: int, base: int = 8192, widest: int = 512) -> tuple[int, ...]:
    """Feature maps at 4, 8, ... `size` pixels: min(widest, base / pixels).

    `base` 8192 gives 18.3 M parameters and 14 GFLOP at 128 pixels and latent 512; 16384 is the
    full table of the paper.
    Raises: ConfigError where `size` is no power of two from 8 to 1024.
    """
    if size < 8 or size > 1024 or size & (size - 1):
        raise ConfigError(
            f"a PGGAN makes images of 8, 16, ... 1024 pixels, not {size}. Choose a power of two."
        )
    sides = [4 << stage for stage in range(int(math.log2(size)) - 1)]
    return tuple(max(1, min(widest, base // side)) for side in sides)


@dataclass(frozen=True)
class PgganSettings:
    """Shape of a PGGAN. `widths` are the feature maps at 4, 8, ... `size` pixels."""

    size: int = 128
    channels: int = 3
    latent: int = 512
    widths: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        standard = pggan_widths(self.size)
        widths = tuple(self.widths) or standard
        if len(widths) != len(standard) or self.channels < 1 or self.latent < 1:
            raise ConfigError(
                f"a PGGAN of {self.size} pixels needs {len(standard)} widths, and positive "
                f"channels and latent; found {widths}, {self.channels} and {self.latent}."
            )
        object.__setattr__(self, "widths", widths)


class Equalised(nn.Module):
    """A linear or convolution layer with He's constant applied at run time."""

    def __init__(self, module: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        nn.init.normal_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
        self.module = module
        self.factor = math.sqrt(2.0 / module.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1.0:
            plain: Tensor = self.module(x)
            return plain
        assert self.module.bias is not None
        weight, bias = self.module.weight * self.factor, self.module.bias * self.factor
        if isinstance(self.module, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=self.module.padding)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the constant into weight and bias."""
        for parameter in self.module.parameters():
            parameter.mul_(self.factor)
        self.factor = 1.0


def _conv(inputs: int, outputs: int, kernel: int = 3) -> Equalised:
    return Equalised(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def _linear(inputs: int, outputs: int) -> Equalised:
    return Equalised(nn.Linear(inputs, outputs))


def pixel_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean over channels of x^2 + 1e-8)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Generator(nn.Module):
    """z -> image, about [-1, 1].

    `stage` (0 is 4 pixels) and `fade` (share of the newest scale, 0..1) serve the growing; a
    finished generator has the last stage and fade 1.
    """

    def __init__(self, settings: PgganSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or PgganSettings()
        widths = settings.widths
        self.formatLayer = _linear(settings.latent, 16 * widths[0])
        self.groupScale0 = nn.ModuleList([_conv(widths[0], widths[0])])
        self.scaleLayers = nn.ModuleList(
            nn.ModuleList([_conv(old, new), _conv(new, new)]) for old, new in pairwise(widths)
        )
        self.toRGBLayers = nn.ModuleList(_conv(width, settings.channels, 1) for width in widths)
        self.stage = len(widths) - 1
        self.fade = 1.0

    def forward(self, z: Tensor) -> Tensor:
        """z: (batch, latent), prior standard deviations. Returns (batch, channels, size, size)."""
        x = _activate(self.formatLayer(pixel_norm(z)))
        x = pixel_norm(x.reshape(-1, self.settings.widths[0], 4, 4))
        x = self._layers(self.groupScale0, x)
        previous = x
        for group in list(self.scaleLayers)[: self.stage]:
            previous = x
            x = self._layers(group, _double(x))
        image: Tensor = self.toRGBLayers[self.stage](x)
        if self.fade < 1.0 and self.stage > 0:
            old = _double(self.toRGBLayers[self.stage - 1](previous))
            image = self.fade * image + (1.0 - self.fade) * old
        return image

    @staticmethod
    def _layers(group: nn.Module, x: Tensor) -> Tensor:
        for layer in group.children():
            x = pixel_norm(_activate(layer(x)))
        return x

    def folded(self) -> Generator:
        """An equal generator for export: constants folded, only the layers of the last stage."""
        return _folded(self)


class Discriminator(nn.Module):
    """image -> logit (large: looks real).

    The minibatch deviation is that of groups of up to four images; in a batch of one, and with
    `independent` set (as for export, where one image must not depend on its neighbours), it is 0.
    """

    def __init__(
        self, settings: PgganSettings | None = None, *, minibatch: bool = True, outputs: int = 1
    ) -> None:
        super().__init__()
        self.settings = settings = settings or PgganSettings()
        widths = settings.widths
        self.scaleLayers = nn.ModuleList(
            nn.ModuleList([_conv(new, new), _conv(new, old)]) for old, new in pairwise(widths)
        )
        self.fromRGBLayers = nn.ModuleList(_conv(settings.channels, width, 1) for width in widths)
        self.decisionLayer = _linear(widths[0], outputs)
        self.groupScaleZero = nn.ModuleList(
            [_conv(widths[0] + minibatch, widths[0]), _linear(16 * widths[0], widths[0])]
        )
        self.minibatch = minibatch
        self.independent = False
        self.stage = len(widths) - 1
        self.fade = 1.0

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, channels, 4 * 2^stage, same). Returns (batch, outputs)."""
        x = self.features(image, 4).flatten(1)
        logit: Tensor = self.decisionLayer(_activate(self.groupScaleZero[1](x)))
        return logit

    def features(self, image: Tensor, side: int) -> Tensor:
        """What the last convolution at `side` pixels (4, 8, ... the image's) makes of images.

        Returns: (batch, width, side, side).
        """
        x = _activate(self.fromRGBLayers[self.stage](image))
        for scale in range(self.stage - 1, -1, -1):
            for layer in self.scaleLayers[scale].children():
                x = _activate(layer(x))
            if side == 8 << scale:
                return x
            x = F.avg_pool2d(x, 2)
            if scale == self.stage - 1 and self.fade < 1.0:
                old = _activate(self.fromRGBLayers[scale](F.avg_pool2d(image, 2)))
                x = self.fade * x + (1.0 - self.fade) * old
        if self.minibatch:
            x = self._with_deviation(x)
        return _activate(self.groupScaleZero[0](x))

    def _with_deviation(self, x: Tensor) -> Tensor:
        if self.independent:
            return F.pad(x, (0, 0, 0, 0, 0, 1))
        batch, _, height, width = x.shape
        group = 4 if batch % 4 == 0 else batch
        if group == 1:
            return F.pad(x, (0, 0, 0, 0, 0, 1))
        spread = torch.sqrt(x.reshape(group, -1, *x.shape[1:]).var(0) + EPSILON)
        mean = spread.mean(dim=(1, 2, 3)).repeat(group).reshape(batch, 1, 1, 1)
        return torch.cat([x, mean.expand(batch, 1, height, width)], dim=1)

    @torch.no_grad()
    def folded(self) -> Discriminator:
        """An equal discriminator of independent images for export, without the deviation."""
        result = _folded(self)
        if result.minibatch:
            first: nn.Conv2d = result.groupScaleZero[0].module  # type: ignore[assignment]
            first.weight = nn.Parameter(first.weight[:, :-1].clone())
            first.in_channels -= 1
            result.minibatch = False
        return result


class DiscriminatorFeatures(nn.Module):
    """image -> f_D, a layer of a discriminator; see `Discriminator.features`.

    Source: seed 002, eq. 2.
    """

    def __init__(self, network: Discriminator, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, channels, size, size). Returns (batch, width, side, side)."""
        return self.network.features(image, self.side)


Network = TypeVar("Network", Generator, Discriminator)


def _folded(network: Network) -> Network:
    if network.fade != 1.0:
        raise ConfigError(
            f"the network is still fading in its last scale (fade {network.fade:.2f}). "
            "Train it to the end."
        )
    result = copy.deepcopy(network).eval().requires_grad_(False)
    for layer in result.modules():
        if isinstance(layer, Equalised):
            layer.fold()
    return result
