"""Normalisations, at inference."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from unblemish.errors import UnsupportedOperatorError
from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op


@op("BatchNormalization")
def batch_normalization(
    node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """(x - mean) / sqrt(var + eps) scale + bias with the stored statistics."""
    if node.get("training_mode", 0):
        raise UnsupportedOperatorError(
            f"BatchNormalization '{node.name}' (opset {node.opset}) is in training mode; "
            "expected inference. Export the model in evaluation mode."
        )
    factor = scale / torch.sqrt(var + node.get("epsilon", 1e-5))
    shape = (1, -1, *[1] * (x.dim() - 2))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


@op("InstanceNormalization")
def instance_normalization(node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Every channel of every item brought to mean 0 and variance 1."""
    y = _standardised(x, tuple(range(2, x.dim())), node.get("epsilon", 1e-5))
    shape = (1, -1, *[1] * (x.dim() - 2))
    return y * scale.reshape(shape) + bias.reshape(shape)


@op("LayerNormalization")
def layer_normalization(
    node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean 0 and variance 1 over the axes from `axis` on; mean and inverse deviation besides."""
    first = node.get("axis", -1) % x.dim()
    dims = tuple(range(first, x.dim()))
    mean = x.mean(dim=dims, keepdim=True)
    inverse = torch.rsqrt(
        (x - mean).square().mean(dim=dims, keepdim=True) + node.get("epsilon", 1e-5)
    )
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@op("RMSNormalization")
def rms_normalization(node: TorchNode, x: Tensor, scale: Tensor) -> Tensor:
    """Root mean square 1 over the axes from `axis` on."""
    dims = tuple(range(node.get("axis", -1) % x.dim(), x.dim()))
    square = x.square().mean(dim=dims, keepdim=True)
    return x * torch.rsqrt(square + node.get("epsilon", 1e-5)) * scale


@op("GroupNormalization")
def group_normalization(node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Mean 0 and variance 1 per group of channels; before opset 21 the scale is per group."""
    groups = node.get("num_groups")
    if node.opset < 21:
        repeats = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@op("LpNormalization")
def lp_normalization(node: TorchNode, x: Tensor) -> Tensor:
    """x over its p-norm along `axis`; 0 where the norm is 0."""
    norm = x.norm(p=node.get("p", 2), dim=node.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@op("MeanVarianceNormalization")
def mean_variance_normalization(node: TorchNode, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over `axes`; the operator adds 1e-9 to the deviation."""
    axes = tuple(node.get("axes", [0, 2, 3]))
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred / (centred.square().mean(dim=axes, keepdim=True).sqrt() + 1e-9)


@op("LRN")
def local_response_normalization(node: TorchNode, x: Tensor) -> Tensor:
    """x / (bias + alpha/size * sum of squares of the neighbouring channels) ** beta."""
    size = node.get("size")
    before = (size - 1) // 2
    square = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
    square = F.pad(square, (0, 0, before, size - 1 - before))
    mean = F.avg_pool2d(square, (size, 1), 1).reshape(x.shape)
    alpha: float = node.get("alpha", 1e-4)
    base: Tensor = node.get("bias", 1.0) + alpha * mean
    beta: float = node.get("beta", 0.75)
    return x / base**beta


def _standardised(x: Tensor, dims: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(dim=dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=dims, keepdim=True) + epsilon)
