"""Pools of rank 1 to 3, with any padding, dilation and rounding of the number of windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from unblemish.runtime.backends.torch_ops.convolution import spatial_rank
from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op
from unblemish.runtime.backends.torch_ops.windows import Window, exact_pads, flat_pads, window

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@op("MaxPool")
def max_pool(node: TorchNode, x: Tensor) -> tuple[Tensor, ...]:
    """Largest element of each window, and its flat index in the whole input where asked for."""
    rank = spatial_rank(node, x)
    geometry = window(node, tuple(node.get("kernel_shape")), tuple(x.shape[2:]))
    pads = exact_pads(geometry, tuple(x.shape[2:]))
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = F.pad(x, flat_pads(pads), value=lowest)
    y, index = _MAX[rank](
        padded, geometry.kernel, geometry.stride, 0, geometry.dilation, return_indices=True
    )
    if len(node.outputs) < 2 or not node.outputs[1]:
        return (y,)
    return y, _flat_index(index, x, padded, pads, column_major=bool(node.get("storage_order", 0)))


def _flat_index(
    index: Tensor, x: Tensor, padded: Tensor, pads: tuple[tuple[int, int], ...], column_major: bool
) -> Tensor:
    coordinates = []
    for length, (before, _) in zip(reversed(padded.shape[2:]), reversed(pads), strict=True):
        coordinates.append(index % length - before)
        index = index // length
    lengths = list(x.shape[2:])
    order = range(len(lengths)) if not column_major else reversed(range(len(lengths)))
    coordinates.reverse()
    flat = torch.zeros_like(index)
    for axis in order:
        flat = flat * lengths[axis] + coordinates[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(lengths)
    return flat + planes.reshape(x.shape[0], x.shape[1], *[1] * len(lengths))


@op("AveragePool")
def average_pool(node: TorchNode, x: Tensor) -> Tensor:
    """Mean of each window, over the input alone or with the stated padding counted."""
    rank = spatial_rank(node, x)
    lengths = tuple(x.shape[2:])
    geometry = window(node, tuple(node.get("kernel_shape")), lengths)
    ones = torch.ones((1, 1, *lengths), dtype=x.dtype, device=x.device)
    # Cells behind the stated padding (rounding up) are never counted.
    counted = geometry.pads if node.get("count_include_pad", 0) else ((0, 0),) * rank
    ones = F.pad(ones, flat_pads(counted), value=1.0)
    rest = tuple(
        (before - b, after - a)
        for (before, after), (b, a) in zip(exact_pads(geometry, lengths), counted, strict=True)
    )
    count = _sum(F.pad(ones, flat_pads(rest)), geometry)
    return _sum(F.pad(x, flat_pads(exact_pads(geometry, lengths))), geometry) / count


@op("LpPool")
def lp_pool(node: TorchNode, x: Tensor) -> Tensor:
    """p-norm of each window."""
    p: float = node.get("p", 2)
    geometry = window(node, tuple(node.get("kernel_shape")), tuple(x.shape[2:]))
    padded = F.pad(x, flat_pads(exact_pads(geometry, tuple(x.shape[2:]))))
    return _sum(padded.abs() ** p, geometry) ** (1.0 / p)


def _sum(x: Tensor, geometry: Window) -> Tensor:
    rank, size = len(geometry.kernel), math.prod(geometry.kernel)
    if all(d == 1 for d in geometry.dilation):
        summed: Tensor = _AVERAGE[rank](x, geometry.kernel, geometry.stride) * size
        return summed
    planes = x.reshape(-1, 1, *x.shape[2:])
    weight = torch.ones((1, 1, *geometry.kernel), dtype=x.dtype, device=x.device)
    y: Tensor = _CONV[rank](planes, weight, None, geometry.stride, 0, geometry.dilation)
    return y.reshape(*x.shape[:2], *y.shape[2:])


@op("GlobalAveragePool")
def global_average_pool(node: TorchNode, x: Tensor) -> Tensor:
    """Mean over all spatial axes."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(node: TorchNode, x: Tensor) -> Tensor:
    """Largest over all spatial axes."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(node: TorchNode, x: Tensor) -> Tensor:
    """p-norm over all spatial axes."""
    p: float = node.get("p", 2)
    return (x.abs() ** p).sum(dim=tuple(range(2, x.dim())), keepdim=True) ** (1.0 / p)
