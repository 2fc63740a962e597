"""The convolutions of an autoencoder between image and code, plain or with residual blocks.

All layers are a convolution, its batch normalisation and a leaky ReLU; a residual block adds two of
them to what they were given, the last ReLU behind the sum. So every normalisation follows a
convolution and can be folded into it, unlike those in front, of Dai and Wipf's network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unblemish.export.models.vae import LEAK, fold_block

Layer = tuple[int, int, int]  # feature maps in, out, stride


def _block(inputs: int, outputs: int, stride: int, *, up: bool = False) -> nn.Sequential:
    layer = nn.ConvTranspose2d if up and stride == 2 else nn.Conv2d
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        layer(inputs, outputs, kernel, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(LEAK),
    )


class Residual(nn.Module):
    """y = lrelu(x + norm(conv(lrelu(norm(conv(x)))))) with kernels of 3; zero at first, but for x.

    Source: He et al. 2016, figure 2; the silent start Goyal et al. 2017, section 5.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _block(width, width, 1)
        norm = nn.BatchNorm2d(width)
        nn.init.zeros_(norm.weight)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, width, h, w). Returns the same shape."""
        return F.leaky_relu(x + self.second(self.first(x)), LEAK)


def encoder_scales(layers: Sequence[Layer], *, residual: bool) -> nn.Sequential:
    """The layers in order, each followed by a residual block where they are wanted."""
    found: list[nn.Module] = []
    for inputs, outputs, stride in layers:
        found.append(_block(inputs, outputs, stride))
        if residual:
            found.append(Residual(outputs))
    return nn.Sequential(*found)


def decoder_scales(layers: Sequence[Layer], *, residual: bool) -> nn.Sequential:
    """The layers in opposite order, transposed where strided, but for the first, which ends at the
    image; residual blocks mirror the encoder's."""
    found: list[nn.Module] = []
    for index in range(len(layers) - 1, -1, -1):
        new, old, stride = layers[index]
        if residual:
            found.append(Residual(old))
        if index:
            found.append(_block(old, new, stride, up=True))
    return nn.Sequential(*found)


@torch.no_grad()
def fold_scales(scales: nn.Module) -> None:
    """Multiply all normalisation into the convolutions in front of it, in place."""
    for block in list(scales.modules()):
        if isinstance(block, nn.Sequential) and len(block) > 1:
            fold_block(block)
