"""Activations, element by element."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op, register_all

register_all(
    {
        "Relu": F.relu,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Softplus": lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device)),
        "Softsign": F.softsign,
        "HardSwish": F.hardswish,
        "Mish": F.mish,
    }
)


@op("LeakyRelu")
def leaky_relu(node: TorchNode, x: Tensor) -> Tensor:
    """x, or alpha x below zero."""
    return F.leaky_relu(x, node.get("alpha", 0.01))


@op("PRelu")
def prelu(node: TorchNode, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero; the slope broadcasts to x."""
    return torch.where(x < 0, slope * x, x)


@op("ThresholdedRelu")
def thresholded_relu(node: TorchNode, x: Tensor) -> Tensor:
    """x above alpha, else 0."""
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@op("Elu")
def elu(node: TorchNode, x: Tensor) -> Tensor:
    """x, or alpha (e^x - 1) below zero."""
    return F.elu(x, node.get("alpha", 1.0))


@op("Celu")
def celu(node: TorchNode, x: Tensor) -> Tensor:
    """max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    return F.celu(x, node.get("alpha", 1.0))


@op("Selu")
def selu(node: TorchNode, x: Tensor) -> Tensor:
    """gamma x, or gamma alpha (e^x - 1) below zero; the operator's own constants."""
    alpha: float = node.get("alpha", 1.6732632423543772)
    gamma: float = node.get("gamma", 1.0507009873554805)
    return gamma * F.elu(x, alpha)


@op("HardSigmoid")
def hard_sigmoid(node: TorchNode, x: Tensor) -> Tensor:
    """alpha x + beta, held in [0, 1]."""
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0.0, 1.0)


@op("Gelu")
def gelu(node: TorchNode, x: Tensor) -> Tensor:
    """x Phi(x), or its tanh approximation."""
    return F.gelu(x, approximate=node.get("approximate", "none"))


@op("Swish")
def swish(node: TorchNode, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@op("Shrink")
def shrink(node: TorchNode, x: Tensor) -> Tensor:
    """Zero within lambd of 0, else moved by bias towards 0."""
    lambd, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))
