"""Gradient of MaxPool, one spatial axis at a time.

A window's maximum is the maximum of its rows' maxima, so the pool is a chain of pools along single
axes, the last axis first. Along one axis the element at tap t of window o is x[s o + d t − p]: the
window gives its cotangent to the last tap that exceeds all taps before it, and a transposed
convolution by one-hot kernels brings the taps back to their places. Ties thus go to the first
element in row-major order, as in torch. Taps are compared with each other and never with the
pool's output, which an engine may hold in another precision. Indices are not used: engines have
them slowly (sixteen times the plain pool in ONNX Runtime on 64 channels of 112 × 112) or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unblemish.errors import ModelError
from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule
from unblemish.export.gradient.rules.windows import Window, resolve, spatial, spread

Names = Sequence[Name | None]


@rule("MaxPool")
def max_pool(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Chain the gradients of the pools along the axes."""
    ct, x = cotangents[0], node.inputs[0]
    if ct is None:  # only its indices lead on, which carry no gradient
        return [None]
    window = resolve(ctx, node, node.attributes["kernel_shape"], spatial(ctx, x))
    ceil = int(node.attributes.get("ceil_mode", 0))
    moving = [a for a in reversed(range(window.rank)) if window.kernel[a] * window.strides[a] > 1]
    stages = [x]
    for axis in moving[:-1]:
        stages.append(_pool_along(ctx, stages[-1], window.along(axis), ceil))
    stages.append(node.outputs[0])
    for index in reversed(range(len(moving))):
        source, target = stages[index], stages[index + 1]
        ct = _gradient_along(
            ctx, ct, source, target, window.along(moving[index]), moving[index], ceil
        )
    return [ct]


def _pool_along(ctx: RuleContext, x: Name, window: Window, ceil: int) -> Name:
    return ctx.op(
        "MaxPool", x, kernel_shape=window.kernel, strides=window.strides, pads=window.pads,
        dilations=window.dilations, ceil_mode=ceil,
    )  # fmt: skip


def _gradient_along(
    ctx: RuleContext, ct: Name, x: Name, y: Name, window: Window, axis: int, ceil: int
) -> Name:
    """Gradient of a pool whose window extends along one spatial axis only."""
    zero = ctx.scalar(0.0, ct)
    masks = _chosen(ctx, _taps(ctx, x, y, window, axis, ceil))
    parts = [ctx.op("Where", mask, ct, zero) if mask else ct for mask in masks]
    return _return(ctx, parts, x, window, axis)


def _chosen(ctx: RuleContext, taps: list[Name]) -> list[Name | None]:
    """For each tap where it is the first maximum; None for a single tap, which always is."""
    exceeds, highest = [], taps[0]
    for index, tap in enumerate(taps[1:], start=2):
        exceeds.append(ctx.op("Greater", tap, highest))
        if index < len(taps):
            highest = ctx.op("Max", highest, tap)
    masks: list[Name | None] = []
    later: Name | None = None  # whether a later tap exceeds all before it
    for mask in reversed(exceeds):
        masks.append(mask if later is None else ctx.op("And", mask, ctx.op("Not", later)))
        later = mask if later is None else ctx.op("Or", later, mask)
    masks.append(None if later is None else ctx.op("Not", later))
    return masks[::-1]


def _taps(ctx: RuleContext, x: Name, y: Name, window: Window, axis: int, ceil: int) -> list[Name]:
    """For each tap the elements of all windows, shaped as y."""
    stride, dilation = window.strides[axis], window.dilations[axis]
    padded, at = _padded(ctx, x, y, window, axis, ceil), ctx.const(np.array([2 + axis]))
    count = _size(ctx, y, axis)
    taps = []
    for start in range(0, window.kernel[axis] * dilation, dilation):
        reach = ctx.op("Mul", count, ctx.const(np.array([stride])))
        end = ctx.op("Add", reach, ctx.const(np.array([start + 1 - stride])))
        begin, step = ctx.const(np.array([start])), ctx.const(np.array([stride]))
        tap = ctx.op("Slice", padded, begin, end, at, step)
        ctx.declare(tap, ctx.dims(y))
        taps.append(tap)
    return taps


def _size(ctx: RuleContext, name: Name, axis: int) -> Name:
    start, end = ctx.const(np.array([2 + axis])), ctx.const(np.array([3 + axis]))
    return ctx.op("Slice", ctx.shape(name), start, end)


def _padded(ctx: RuleContext, x: Name, y: Name, window: Window, axis: int, ceil: int) -> Name:
    """x with −∞ around it, up to the end of the last window."""
    size, count = spatial(ctx, x)[axis], spatial(ctx, y)[axis]
    stride, before = window.strides[axis], window.before[axis]
    if size is None or count is None:
        after = window.after[axis] + (stride - 1) * ceil
    else:
        after = max(stride * (count - 1) + window.extent[axis] - size - before, 0)
    if not before and not after:
        return x
    around = np.zeros((2, window.rank + 2), dtype=np.int64)
    around[:, 2 + axis] = before, after
    return ctx.op("Pad", x, ctx.const(around.ravel()), ctx.scalar(-np.inf, x))


def _return(ctx: RuleContext, parts: list[Name], x: Name, window: Window, axis: int) -> Name:
    """Add each tap's share to the element it came from."""
    taps, rank = len(parts), window.rank
    if _side_by_side(ctx, parts[0], x, window, axis):
        last = ctx.const(np.array([3 + axis]))
        joined = ctx.op("Concat", *(ctx.op("Unsqueeze", p, last) for p in parts), axis=3 + axis)
        return ctx.op("Reshape", joined, ctx.shape(x))
    channels = (ctx.static_shape(x) or (None, None))[1]
    if channels is None:
        raise ModelError(f"the channels of '{x}' are symbolic; its pooling's gradient needs them")
    second = ctx.const(np.array([2]))
    joined = ctx.op("Concat", *(ctx.op("Unsqueeze", p, second) for p in parts), axis=2)
    space = ctx.op("Slice", ctx.shape(parts[0]), second, ctx.const(np.array([2 + rank])))
    wide = ctx.op("Concat", ctx.const(np.array([0, channels * taps])), space, axis=0)
    one_hot = np.tile(np.eye(taps, dtype=ctx.dtype(x)), (channels, 1))
    kernel = ctx.const(one_hot.reshape(channels * taps, 1, *window.kernel))
    shares = ctx.op("Reshape", joined, wide)
    have = ctx.dims(parts[0])
    ctx.declare(shares, have and (have[0], channels * taps, *have[2:]))
    return spread(ctx, shares, kernel, x, window, channels)


def _side_by_side(ctx: RuleContext, part: Name, x: Name, window: Window, axis: int) -> bool:
    """Whether the windows are known to cover the axis exactly, each element once."""
    size, count = spatial(ctx, x)[axis], spatial(ctx, part)[axis]
    plain = window.strides == window.kernel and not any(window.pads)
    plain = plain and window.dilations[axis] == 1
    return plain and size is not None and count is not None and size == count * window.kernel[axis]
