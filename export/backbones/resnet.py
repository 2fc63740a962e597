"""ResNet18, ResNet50 and Wide-ResNet50-2, as far as the layers asked for need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ResNetSettings:
    """Shape of one residual network.

    Args:
        blocks: in layer1 ... layer4.
        bottleneck: three convolutions a block instead of two; the last widens four times.
        width: channels of the middle convolution of layer1; doubled by every layer.
        folded: the batch norms are merged into the convolutions, which then have biases.
    Source: He et al., 'Deep residual learning for image recognition', 2016, table 1; Zagoruyko and
        Komodakis, 'Wide residual networks', 2016.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    width: int = 64
    folded: bool = False


RESNETS = {
    "resnet18": ResNetSettings((2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetSettings((3, 4, 6, 3), bottleneck=True),
    "wide_resnet50_2": ResNetSettings((3, 4, 6, 3), bottleneck=True, width=128),
}
LAYERS = ("layer1", "layer2", "layer3", "layer4")
STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}


class Block(nn.Module):
    """One residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1."""

    def __init__(self, s: ResNetSettings, inputs: int, outputs: int, middle: int, stride: int):
        super().__init__()
        if s.bottleneck:
            self.conv1, self.bn1 = _conv(inputs, middle, 1, 1, s), _norm(middle, s)
            self.conv2, self.bn2 = _conv(middle, middle, 3, stride, s), _norm(middle, s)
            self.conv3, self.bn3 = _conv(middle, outputs, 1, 1, s), _norm(outputs, s)
        else:
            self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride, s), _norm(outputs, s)
            self.conv2, self.bn2 = _conv(outputs, outputs, 3, 1, s), _norm(outputs, s)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride, s), _norm(outputs, s))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs, h, w). Returns (batch, outputs, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(functional.relu(y)))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network up to the last layer asked for; no pooling and no classifier behind it.

    Args:
        layers: whose outputs are wanted, of layer1 ... layer4, in that order.
        classifier: append torchvision's `fc`, so that whole checkpoints can be counted.
    """

    def __init__(self, s: ResNetSettings, layers: Sequence[str], classifier: bool = False) -> None:
        super().__init__()
        self.wanted = tuple(layers)
        self.conv1, self.bn1 = _conv(3, 64, 7, 2, s), _norm(64, s)
        inputs = 64
        for index in range(LAYERS.index(self.wanted[-1]) + 1):
            outputs = (256 if s.bottleneck else 64) << index
            middle, stride = s.width << index, 1 if index == 0 else 2
            blocks = [Block(s, inputs, outputs, middle, stride)]
            blocks += [Block(s, outputs, outputs, middle, 1) for _ in range(s.blocks[index] - 1)]
            self.add_module(LAYERS[index], nn.Sequential(*blocks))
            inputs = outputs
        if classifier:
            self.fc = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: normalised images (batch, 3, H, W). Returns the wanted layers, (batch, c, h, w)."""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        outputs = []
        for name in LAYERS[: LAYERS.index(self.wanted[-1]) + 1]:
            x = getattr(self, name)(x)
            if name in self.wanted:
                outputs.append(x)
        return outputs


def _conv(inputs: int, outputs: int, side: int, stride: int, s: ResNetSettings) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=s.folded)


def _norm(channels: int, s: ResNetSettings) -> nn.Module:
    return nn.Identity() if s.folded else nn.BatchNorm2d(channels)
