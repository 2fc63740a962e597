"""Resize and Upsample by one constant matrix per axis."""

from __future__ import annotations

import functools

import torch

from unblemish.runtime.backends.interpolation import (
    ResizeSettings,
    interpolation_matrix,
    target_axes,
)
from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op


@op("Resize")
def resize(
    node: TorchNode,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resample the axes named by scales or sizes; opset 10 has the scales as second input."""
    if node.opset < 11:
        roi, scales = None, roi
    return _resample(node, x, roi, scales, sizes)


@op("Upsample")
def upsample(node: TorchNode, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize with asymmetric coordinates, rounding down."""
    given = scales if scales is not None else torch.tensor(node.get("scales"))
    return _resample(node, x, None, given, None)


def _resample(
    node: TorchNode, x: Tensor, roi: Tensor | None, scales: Tensor | None, sizes: Tensor | None
) -> Tensor:
    settings = ResizeSettings.from_attributes(node.op_type, node.attributes, node.opset)
    axes = tuple(a % x.dim() for a in node.get("axes", range(x.dim())))
    targets = target_axes(
        tuple(x.shape),
        axes,
        None if scales is None else scales.detach().cpu().numpy(),
        None if sizes is None else sizes.cpu().numpy(),
        node.get("keep_aspect_ratio_policy", "stretch"),
    )
    regions = [float(v) for v in roi.tolist()] if roi is not None and roi.numel() else []
    regions = regions or [0.0] * len(axes) + [1.0] * len(axes)
    crops = settings.coordinates == "tf_crop_and_resize"
    extrapolated: list[tuple[int, Tensor]] = []
    for i, (axis, (target, scale)) in enumerate(zip(axes, targets, strict=True)):
        if target == x.shape[axis] and scale == 1.0 and not crops:
            continue
        region = regions[i], regions[i + len(axes)]
        weights, outside = _placed(
            settings, x.shape[axis], target, scale, region, x.dtype, x.device
        )
        x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
        extrapolated.append((axis, outside))
    for axis, where in extrapolated if crops else []:
        shape = [1] * x.dim()
        shape[axis] = -1
        x = torch.where(where.reshape(shape), settings.extrapolation, x)
    return x


@functools.lru_cache(maxsize=32)
def _placed(
    settings: ResizeSettings,
    source: int,
    target: int,
    scale: float,
    region: tuple[float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The matrix of an axis and what lies outside, kept there: a copy in each pass would wait."""
    matrix, outside = interpolation_matrix(settings, source, target, scale, region)
    return torch.from_numpy(matrix).to(device, dtype), torch.from_numpy(outside).to(device)
