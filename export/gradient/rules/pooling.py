"""Gradients of global pooling, and of pooling by means and norms; MaxPool is in `maximum.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from unblemish.errors import ModelError
from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule
from unblemish.export.gradient.rules.windows import Window, crop_to, resolve, spatial, spread

Names = Sequence[Name | None]


@rule("AveragePool")
def average_pool(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Spread ct / count over each window."""
    ct, x = cotangents[0], node.inputs[0]
    assert ct is not None
    window = resolve(ctx, node, node.attributes["kernel_shape"], spatial(ctx, x))
    share = _divided(ctx, node, ct, x, window)
    return [_spread_ones(ctx, share, x, window)]


@rule("LpPool")
def lp_pool(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = (Σ|x|^p)^(1/p): |x|^(p−1) sign(x) Σ ct y^(1−p), the sum over the windows of x."""
    ct, x, y = cotangents[0], node.inputs[0], node.outputs[0]
    assert ct is not None
    window = resolve(ctx, node, node.attributes["kernel_shape"], spatial(ctx, x))
    p = int(node.attributes.get("p", 2))
    return [
        ctx.op("Mul", _spread_ones(ctx, _lp_outer(ctx, ct, y, p), x, window), _lp_inner(ctx, x, p))
    ]


@rule("GlobalLpPool")
def global_lp_pool(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """As LpPool with one window."""
    ct, x, y = cotangents[0], node.inputs[0], node.outputs[0]
    assert ct is not None
    p = int(node.attributes.get("p", 2))
    return [ctx.op("Mul", _lp_outer(ctx, ct, y, p), _lp_inner(ctx, x, p))]


def _lp_outer(ctx: RuleContext, ct: Name, y: Name, p: int) -> Name:
    """ct y^(1−p), zero where y = 0 (x is zero there)."""
    if p == 1:
        return ct
    power = y if p == 2 else ctx.op("Pow", y, ctx.scalar(p - 1.0, y))
    zero = ctx.scalar(0.0, y)
    empty = ctx.op("Equal", y, zero)
    return ctx.op(
        "Where", empty, zero, ctx.op("Div", ct, ctx.op("Where", empty, ctx.scalar(1.0, y), power))
    )


def _lp_inner(ctx: RuleContext, x: Name, p: int) -> Name:
    """|x|^(p−1) sign(x)."""
    if p == 2:
        return x
    sign = ctx.op("Sign", x)
    if p == 1:
        return sign
    return ctx.op("Mul", sign, ctx.op("Pow", ctx.op("Abs", x), ctx.scalar(p - 1.0, x)))


@rule("GlobalAveragePool")
def global_average_pool(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct / size for every element."""
    ct, x = cotangents[0], node.inputs[0]
    assert ct is not None
    count = ctx.op("ReduceProd", _spatial_sizes(ctx, x), keepdims=0)
    count = ctx.op("Cast", count, to=helper.np_dtype_to_tensor_dtype(ctx.dtype(x)))
    return [ctx.op("Expand", ctx.op("Div", ct, count), ctx.shape(x))]


@rule("GlobalMaxPool")
def global_max_pool(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct to the first element that is the maximum, as MaxPool."""
    ct, x = cotangents[0], node.inputs[0]
    flat = ctx.op("Reshape", x, ctx.const(np.array([0, 0, -1])))
    zero, one = ctx.const(np.array(0)), ctx.const(np.array(1))
    count = ctx.op("ReduceProd", _spatial_sizes(ctx, x), keepdims=0)
    places = ctx.op("Range", zero, count, one)
    mask = ctx.op("Equal", ctx.op("ArgMax", flat, axis=2, keepdims=1), places)
    row = ctx.op("Reshape", ct, ctx.const(np.array([0, 0, 1])))
    grad = ctx.op("Where", mask, row, ctx.scalar(0.0, x))
    return [ctx.op("Reshape", grad, ctx.shape(x))]


def _spatial_sizes(ctx: RuleContext, x: Name) -> Name:
    return ctx.op(
        "Slice", ctx.shape(x), ctx.const(np.array([2])), ctx.const(np.array([ctx.rank(x)]))
    )


def _spread_ones(ctx: RuleContext, ct: Name, x: Name, window: Window) -> Name:
    """Add each value of `ct` to all elements of its window."""
    if _tiles(ctx, ct, x, window):
        scales = np.array([1, 1, *window.kernel], dtype=np.float32)
        return ctx.op(
            "Resize", ct, None, ctx.const(scales), mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip
    shape = ctx.static_shape(x)
    channels = shape[1] if shape is not None else None
    if channels is None:
        raise ModelError(f"the channels of '{x}' are symbolic; its pooling's gradient needs them")
    kernel = np.ones((channels, 1, *window.kernel), dtype=ctx.dtype(x))
    return spread(ctx, ct, ctx.const(kernel), x, window, channels)


def _tiles(ctx: RuleContext, ct: Name, x: Name, window: Window) -> bool:
    """Whether the windows are known to cover x side by side, each element once."""
    sizes, counts = spatial(ctx, x), spatial(ctx, ct)
    plain = window.strides == window.kernel and all(d == 1 for d in window.dilations)
    return plain and not any(window.pads) and all(
        size is not None and count is not None and size == count * k
        for size, count, k in zip(sizes, counts, window.kernel, strict=True)
    )  # fmt: skip


def _divided(ctx: RuleContext, node: ForwardNode, ct: Name, x: Name, window: Window) -> Name:
    """ct over the number of elements that the forward pass divided by."""
    include = bool(node.attributes.get("count_include_pad", 0))
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if not ceil and (include or not any(window.pads)):
        return ctx.op("Mul", ct, ctx.scalar(1.0 / float(np.prod(window.kernel)), ct))
    counts = _static_counts(spatial(ctx, x), spatial(ctx, ct), window, include)
    if counts is not None:
        return ctx.op("Mul", ct, ctx.const((1.0 / counts).astype(ctx.dtype(ct))))
    return ctx.op("Div", ct, _graph_counts(ctx, ct, x, window, include, ceil))


def _static_counts(
    sizes: list[int | None], windows: list[int | None], window: Window, include: bool
) -> NDArray[np.float64] | None:
    """Elements per window: the product over axes of those of the input, or of the padded one."""
    product = np.ones([1] * (2 + window.rank))
    for axis, (size, count) in enumerate(zip(sizes, windows, strict=True)):
        if size is None or count is None:
            return None
        starts = np.arange(count)[:, None] * window.strides[axis] - window.before[axis]
        taps = starts + np.arange(window.kernel[axis])[None] * window.dilations[axis]
        low, high = (-window.before[axis], size + window.after[axis]) if include else (0, size)
        shape = [1] * (2 + window.rank)
        shape[2 + axis] = count
        product = product * ((taps >= low) & (taps < high)).sum(axis=1).reshape(shape)
    return product


def _graph_counts(
    ctx: RuleContext, ct: Name, x: Name, window: Window, include: bool, ceil: bool
) -> Name:
    """The same in the graph, for symbolic sizes: ones convolved by ones.

    Ceiling the number of windows is flooring it after s − 1 more elements; windows that begin in
    the right pad, which pooling leaves out, are cut off.
    """
    one = np.ones(1, dtype=ctx.dtype(x))
    batch = ctx.const(np.array([1, 1]))
    ones = ctx.op(
        "ConstantOfShape", ctx.op("Concat", batch, _spatial_sizes(ctx, x), axis=0), value=one
    )
    pads = window.pads
    if include:
        around = [0, 0, *window.before, 0, 0, *window.after]
        ones = ctx.op("Pad", ones, ctx.const(np.array(around)), ctx.const(one[0]))
        pads = [0] * len(pads)
    if ceil:
        pads = [p + (s - 1 if i >= window.rank else 0)
                for i, (p, s) in enumerate(zip(pads, window.strides * 2, strict=True))]  # fmt: skip
    kernel = ctx.const(np.ones((1, 1, *window.kernel), dtype=ctx.dtype(x)))
    counts = ctx.op(
        "Conv", ones, kernel, strides=window.strides, dilations=window.dilations, pads=pads
    )
    return crop_to(ctx, counts, ct, spatial(ctx, ct)) if ceil else counts
