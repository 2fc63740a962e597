"""The first convolution of a network for grey images: one channel instead of three equal ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unblemish.export.backbones.efficientnet import EfficientNet
from unblemish.export.backbones.resnet import ResNet


class GreyStem(nn.Module):
    """Normalisation and first convolution of a grey image x that counts as three equal channels.

    With weights W_c, means m_c and deviations s_c, inside the image as at its zero pads,
        sum_c W_c * (x - m_c) / s_c = (sum_c W_c / s_c) * x - (sum_c W_c m_c / s_c) * 1,
    where the last term does not depend on x: its gradient has a third of the arithmetic.
    """

    image: Tensor
    ones: Tensor
    bias: Tensor

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        weight, bias = conv.weight, conv.bias
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        scaled = weight.detach().double() / torch.tensor(std).double().view(1, 3, 1, 1)
        offset = scaled * torch.tensor(mean).double().view(1, 3, 1, 1)
        self.register_buffer("image", scaled.sum(1, keepdim=True).float())
        self.register_buffer("ones", -offset.sum(1, keepdim=True).float())
        given = torch.zeros(len(weight)) if bias is None else bias.detach()
        self.register_buffer("bias", given.float())
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, image: Tensor) -> Tensor:
        """image: (batch, 1, H, W) in [0, 1]. Returns (batch, c, H / 2, W / 2)."""
        ones = torch.ones(1, 1, image.shape[2], image.shape[3])
        offset = functional.conv2d(ones, self.ones, self.bias, self.stride, self.padding)
        return functional.conv2d(image, self.image, None, self.stride, self.padding) + offset


def make_grey(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a network take grey images (batch, 1, H, W) in [0, 1], not normalised, in place."""
    if isinstance(network, ResNet):
        network.conv1 = GreyStem(network.conv1, network.bn1, mean, std)  # type: ignore[assignment]
        network.bn1 = nn.Identity()
    else:
        assert isinstance(network, EfficientNet)
        stem = network.features[0]
        assert isinstance(stem, nn.Sequential)
        assert isinstance(stem[0], nn.Conv2d)
        stem[0], stem[1] = GreyStem(stem[0], stem[1], mean, std), nn.Identity()
