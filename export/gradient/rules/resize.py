"""Gradient of Resize: sums over blocks where pixels were repeated, else one matrix per axis.

Every mode is separable and linear, y = W_1 x W_2ᵀ …, so the cotangent is multiplied with each Wᵀ.
Upsample needs no rule: it becomes Resize when the model is brought to the working opset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported
from unblemish.export.gradient.rules.sampling import computed_weights
from unblemish.export.gradient.rules.shapes import END, constant_ints, part, vector
from unblemish.runtime.backends.interpolation import (
    ResizeSettings,
    interpolation_matrix,
    target_axes,
)

Names = Sequence[Name | None]

_SAMPLE = 16
"""Length at which a symbolic axis is examined; the modes admitted treat every length alike."""


@dataclass(frozen=True)
class _Axis:
    """One resampled axis; lengths are None where symbolic, scale None where computed."""

    axis: int
    length: int | None
    target: int | None
    scale: float | None
    roi: tuple[float, float]


@rule("Resize")
def resize(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Multiply the cotangent with the transposed interpolation matrix of every axis."""
    ct, x = cotangents[0], node.inputs[0]
    assert ct is not None
    settings = ResizeSettings.from_attributes("Resize", node.attributes, ctx.opset)
    axes = _axes(ctx, node, settings)
    rank = ctx.rank(x)
    factors = {a.axis: _repeats(settings, a) for a in axes}
    pooled = {a: f for a, f in factors.items() if f and a >= 2 and rank <= 5}
    if pooled:
        ct = _block_sums(ctx, ct, [pooled.get(a, 1) for a in range(2, rank)])
    rest = [a for a in axes if a.axis not in pooled]
    # The axis that shrinks most comes first: what follows is smaller.
    for axis in sorted(rest, key=lambda a: -(a.scale or 1.0)):
        ct = _along(ctx, node, settings, ct, axis)
    return [ct, None, None, None]


def _block_sums(ctx: RuleContext, ct: Name, factors: list[int]) -> Name:
    mean = ctx.op("AveragePool", ct, kernel_shape=factors, strides=factors)
    return ctx.op("Mul", mean, ctx.scalar(float(math.prod(factors)), ct))


def _repeats(settings: ResizeSettings, axis: _Axis) -> int | None:
    """The factor by which every element is repeated, None where the axis is sampled otherwise."""
    if settings.mode != "nearest" or axis.scale is None or axis.scale != int(axis.scale):
        return None
    if axis.scale < 1:
        return None
    if axis.length is None and settings.coordinates in ("align_corners", "tf_crop_and_resize"):
        return None
    factor, size = int(axis.scale), axis.length or _SAMPLE
    if axis.target is not None and axis.length is not None and axis.target != factor * size:
        return None
    matrix, _ = interpolation_matrix(settings, size, factor * size, axis.scale, axis.roi)
    return factor if np.array_equal(matrix, np.repeat(np.eye(size), factor, axis=0)) else None


def _along(
    ctx: RuleContext, node: ForwardNode, settings: ResizeSettings, ct: Name, axis: _Axis
) -> Name:
    """Multiply with Wᵀ along one axis, in place of the axis: no transposition is needed."""
    if axis.length is not None and axis.target is not None and axis.scale is not None:
        matrix, _ = interpolation_matrix(settings, axis.length, axis.target, axis.scale, axis.roi)
        weights = ctx.const(matrix.astype(ctx.dtype(ct)))
        turned = ctx.const(np.ascontiguousarray(matrix.T).astype(ctx.dtype(ct)))
    else:
        weights = computed_weights(
            ctx, node, settings, ct, axis.axis, _scale(ctx, node, axis), axis.roi
        )
        turned = ctx.op("Transpose", weights, perm=[1, 0])
    rank = ctx.rank(ct)
    if axis.axis == rank - 1:
        return ctx.op("MatMul", ct, weights)
    if axis.axis == rank - 2:
        return ctx.op("MatMul", turned, ct)
    merged = ctx.op("Reshape", ct, vector(ctx, [0] * (axis.axis + 1) + [-1]))
    product = ctx.op("MatMul", turned, merged)
    behind = part(ctx, ctx.shape(ct), 0, axis.axis + 1, END)
    target = ctx.op("Concat", vector(ctx, [0] * (axis.axis + 1)), behind, axis=0)
    return ctx.op("Reshape", product, target)


def _scale(ctx: RuleContext, node: ForwardNode, axis: _Axis) -> float | Name | None:
    """Scale of an axis: a number, a computed float32 of shape (1,), or None: ratio of lengths."""
    if axis.scale is not None:
        return axis.scale
    scales = node.input(2)
    if scales is None or ctx.static_shape(scales) == (0,):
        return None
    order = node.attributes.get("axes") or list(range(ctx.rank(node.inputs[0])))
    place = [a % ctx.rank(node.inputs[0]) for a in order].index(axis.axis)
    return part(ctx, scales, 0, place, place + 1)


def _axes(ctx: RuleContext, node: ForwardNode, settings: ResizeSettings) -> list[_Axis]:
    """The axes that are resampled at all."""
    x, y = node.inputs[0], node.outputs[0]
    rank = ctx.rank(x)
    order = [a % rank for a in node.attributes.get("axes") or range(rank)]
    have, want = ctx.dims(x) or (None,) * rank, ctx.dims(y) or (None,) * rank
    steps = _steps(ctx, node, order, have)
    rois = _rois(ctx, node, settings, len(order))
    axes = []
    for axis, (target, scale), roi in zip(order, steps, rois, strict=True):
        length, size = have[axis], want[axis] if target is None else target
        whole = settings.coordinates != "tf_crop_and_resize" or roi == (0.0, 1.0)
        same = scale == 1.0 if scale is not None else length is not None and length == size
        # With computed sizes nothing tells that the batch is kept, which it always is.
        batch = scale is None and axis == 0 and not isinstance(size, int)
        if whole and (same or batch):
            continue
        static = [d if isinstance(d, int) else None for d in (length, size)]
        axes.append(_Axis(axis, static[0], static[1], scale, roi))
    return axes


def _steps(
    ctx: RuleContext, node: ForwardNode, order: list[int], have: Sequence[int | str | None]
) -> list[tuple[int | None, float | None]]:
    """Target length and scale of each resized axis, None where not constant."""
    scales = ctx.constant_value(node.inputs[2]) if node.input(2) else None
    sizes = constant_ints(ctx, node.input(3))
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    lengths = [have[a] for a in order]
    if (scales is not None and scales.size) or sizes is not None:
        if all(isinstance(n, int) for n in lengths):
            shape = tuple(n if isinstance(n, int) else 0 for n in have)
            given = None if sizes is None else np.array(sizes)
            return list(target_axes(shape, tuple(order), scales, given, policy))
        if scales is not None and scales.size:
            return [(None, float(s)) for s in scales]
    if policy != "stretch":
        raise unsupported(
            ctx,
            node,
            f"keep_aspect_ratio_policy '{policy}' needs static lengths; fix the input's shape",
        )
    if sizes is None:
        return [(None, None)] * len(order)
    return [(s, s / n if isinstance(n, int) else None) for s, n in zip(sizes, lengths, strict=True)]


def _rois(
    ctx: RuleContext, node: ForwardNode, settings: ResizeSettings, count: int
) -> list[tuple[float, float]]:
    if settings.coordinates != "tf_crop_and_resize":
        return [(0.0, 1.0)] * count
    roi = ctx.constant_value(node.inputs[1]) if node.input(1) else None
    if roi is None:
        raise unsupported(ctx, node, "tf_crop_and_resize needs a constant roi")
    return [(float(roi[i]), float(roi[i + count])) for i in range(count)]
