"""EfficientNet-B0 ... B6, as far as the layers asked for need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

# Width and depth factors. Source: Tan and Le, 'EfficientNet', 2019.
EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
}
# torchvision trained B5 and later with another epsilon of the batch norms.
_LATE = ("efficientnet_b5", "efficientnet_b6")


@dataclass(frozen=True)
class Stage:
    """A row of the paper's table 1: blocks of the same expansion, kernel and width."""

    expand: int
    kernel: int
    stride: int
    inputs: int
    outputs: int
    blocks: int


_STAGES = (
    Stage(1, 3, 1, 32, 16, 1),
    Stage(6, 3, 2, 16, 24, 2),
    Stage(6, 5, 2, 24, 40, 2),
    Stage(6, 3, 2, 40, 80, 3),
    Stage(6, 5, 1, 80, 112, 3),
    Stage(6, 5, 2, 112, 192, 4),
    Stage(6, 3, 1, 192, 320, 1),
)
LAYERS = tuple(f"features.{i}" for i in range(8))
STRIDES = dict(zip(LAYERS, (2, 2, 4, 8, 16, 16, 32, 32), strict=True))


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the image."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, h, w)."""
        mean = x.mean((2, 3), keepdim=True)
        weights: Tensor = self.fc2(nn.functional.silu(self.fc1(mean))).sigmoid()
        return x * weights


class MBConv(nn.Module):
    """Widen, filter each channel, weigh the channels, narrow; added to the input where it fits."""

    def __init__(self, s: Stage, inputs: int, stride: int, eps: float) -> None:
        super().__init__()
        wide = _rounded(inputs * s.expand)
        parts: list[nn.Module] = []
        if wide != inputs:
            parts.append(_conv(inputs, wide, 1, 1, eps))
        parts.append(_conv(wide, wide, s.kernel, stride, eps, groups=wide))
        parts.append(SqueezeExcite(wide, max(1, inputs // 4)))
        parts.append(_conv(wide, s.outputs, 1, 1, eps, activation=False))
        self.block = nn.Sequential(*parts)
        self.added = stride == 1 and inputs == s.outputs

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs, h, w)."""
        y: Tensor = self.block(x)
        return x + y if self.added else y


class EfficientNet(nn.Module):
    """The `features` of torchvision's EfficientNet up to the last one asked for.

    Args:
        layers: whose outputs are wanted, of features.0 ... features.7, in that order.
        classifier: append features.8 and the classifier, so that checkpoints can be counted.
    """

    def __init__(self, name: str, layers: Sequence[str], classifier: bool = False) -> None:
        super().__init__()
        width, depth = EFFICIENTNETS[name]
        eps = 1e-3 if name in _LATE else 1e-5
        self.wanted = tuple(LAYERS.index(layer) for layer in layers)
        self.features = nn.Sequential(_conv(3, _rounded(32 * width), 3, 2, eps))
        for stage in _STAGES[: self.wanted[-1]]:
            self.features.append(_stage(_scaled(stage, width, depth), eps))
        if classifier:
            last = _rounded(320 * width)
            self.features.append(_conv(last, 4 * last, 1, 1, eps))
            self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(4 * last, 1000))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: normalised images (batch, 3, H, W). Returns the wanted layers, (batch, c, h, w)."""
        outputs = []
        for index in range(self.wanted[-1] + 1):
            x = self.features[index](x)
            if index in self.wanted:
                outputs.append(x)
        return outputs


def _stage(s: Stage, eps: float) -> nn.Sequential:
    first = MBConv(s, s.inputs, s.stride, eps)
    return nn.Sequential(first, *(MBConv(s, s.outputs, 1, eps) for _ in range(s.blocks - 1)))


def _scaled(s: Stage, width: float, depth: float) -> Stage:
    return Stage(
        s.expand, s.kernel, s.stride, _rounded(s.inputs * width), _rounded(s.outputs * width),
        math.ceil(s.blocks * depth),
    )  # fmt: skip


def _rounded(channels: float) -> int:
    """To a multiple of 8, losing no more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv(
    inputs: int, outputs: int, side: int, stride: int, eps: float, *, groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:  # fmt: skip
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
    ]
    return nn.Sequential(*parts, nn.SiLU()) if activation else nn.Sequential(*parts)
