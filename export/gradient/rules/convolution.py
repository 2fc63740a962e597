"""Gradients of Conv and ConvTranspose, as Conv and ConvTranspose.

With X (N, C, S), W (M, C/g, k), stride s, dilation d, pads p and extent K = (k−1)d + 1, per axis:
Y[o] = Σ_k W[k] X[s o + d k − p], so
    grad_X[i] = Σ W[k] ct[o] over s o + d k − p = i — a transposed convolution of ct,
    grad_W[k] = Σ_o ct[o] X[s o + d k − p] — a convolution of X by ct, stride d, dilation s.
At stride 1 the former is a convolution by the kernel turned over, with pads K − 1 − p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unblemish.errors import ModelError
from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported
from unblemish.export.gradient.rules.windows import Window, crop_to, resolve, spatial, spread

Names = Sequence[Name | None]

_END = np.iinfo(np.int64).min  # a Slice of negative step runs to the front


@rule("Conv")
def conv(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Gradients with respect to input, kernel and bias."""
    ct, (x, w), bias = cotangents[0], node.inputs[:2], node.input(2)
    assert ct is not None
    window = resolve(ctx, node, _kernel(ctx, node), spatial(ctx, x))
    group = node.attributes.get("group", 1)
    return [
        _input_gradient(ctx, ct, x, w, window, group) if ctx.needs(x) else None,
        _kernel_gradient(ctx, x, ct, w, window, group) if ctx.needs(w) else None,
        _bias_gradient(ctx, ct) if ctx.needs(bias) else None,
    ]


@rule("ConvTranspose")
def conv_transpose(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Y is what Conv's input gradient would be: the roles of X and ct change places."""
    ct, (x, w), bias = cotangents[0], node.inputs[:2], node.input(2)
    assert ct is not None
    window = _transposed_window(ctx, node)
    group = node.attributes.get("group", 1)
    grad_x = None
    if ctx.needs(x):
        full = _conv(ctx, ct, w, window, group)
        grad_x = crop_to(ctx, full, x, spatial(ctx, x)) if _longer(ctx, full, x) else full
    return [
        grad_x,
        _kernel_gradient(ctx, ct, x, w, window, group) if ctx.needs(w) else None,
        _bias_gradient(ctx, ct) if ctx.needs(bias) else None,
    ]


def _longer(ctx: RuleContext, name: Name, like: Name) -> bool:
    """Whether output padding gave the convolution further windows, or may have."""
    have, want = spatial(ctx, name), spatial(ctx, like)
    return any(h is None or w is None or h != w for h, w in zip(have, want, strict=True))


def _kernel(ctx: RuleContext, node: ForwardNode) -> list[int]:
    shape = spatial(ctx, node.inputs[1])
    given = node.attributes.get("kernel_shape")
    sizes = list(given) if given else [k for k in shape if k is not None]
    if len(sizes) != len(shape):
        raise unsupported(
            ctx, node, "the size of its kernel is symbolic; give the kernel a static shape"
        )
    return sizes


def _conv(ctx: RuleContext, x: Name, w: Name, window: Window, group: int) -> Name:
    return ctx.op(
        "Conv", x, w, kernel_shape=window.kernel, strides=window.strides, group=group,
        dilations=window.dilations, pads=window.pads,
    )  # fmt: skip


def _input_gradient(
    ctx: RuleContext, ct: Name, x: Name, w: Name, window: Window, group: int
) -> Name:
    turned = [e - 1 - p for e, p in zip(window.extent * 2, window.pads, strict=True)]
    if all(s == 1 for s in window.strides) and min(turned) >= 0:
        rank = window.rank
        around = Window(
            window.kernel, window.strides, window.dilations, turned[:rank], turned[rank:]
        )
        return _conv(ctx, ct, _turn_over(ctx, w, group), around, group)
    return spread(ctx, ct, w, x, window, group)


def _turn_over(ctx: RuleContext, w: Name, group: int) -> Name:
    """(M, C/g, k) → (C, M/g, k), channels exchanged within each group and the taps reversed."""
    shape = ctx.static_shape(w)
    if shape is None or None in shape:
        raise ModelError(
            f"the kernel '{w}' has no static shape, which its convolution's gradient needs"
        )
    sizes = [int(s or 0) for s in shape]
    rank = len(sizes) - 2
    split = [group, sizes[0] // group, *sizes[1:]]
    merged = [group * sizes[1], sizes[0] // group, *sizes[2:]]
    perm = [0, 2, 1, *range(3, 3 + rank)]
    value = ctx.constant_value(w)
    if value is not None:
        exchanged = value.reshape(split).transpose(perm).reshape(merged)
        return ctx.const(np.flip(exchanged, axis=tuple(range(2, 2 + rank))))
    if group == 1:
        exchanged_name = ctx.op("Transpose", w, perm=[1, 0, *range(2, 2 + rank)])
    else:
        parts = ctx.op("Reshape", w, ctx.const(np.array(split)))
        parts = ctx.op("Transpose", parts, perm=perm)
        exchanged_name = ctx.op("Reshape", parts, ctx.const(np.array(merged)))
    return _flip(ctx, exchanged_name, [a + 2 for a in range(rank) if sizes[a + 2] > 1])


def _flip(ctx: RuleContext, name: Name, axes: list[int]) -> Name:
    if not axes:
        return name
    return ctx.op(
        "Slice", name, ctx.const(np.full(len(axes), -1)), ctx.const(np.full(len(axes), _END)),
        ctx.const(np.array(axes)), ctx.const(np.full(len(axes), -1)),
    )  # fmt: skip


def _kernel_gradient(
    ctx: RuleContext, x: Name, ct: Name, w: Name, window: Window, group: int
) -> Name:
    """Convolve X by ct, batch and channels exchanged: (C/g, g N, S) * (M, N, o) → (C/g, M, k)."""
    swap = [1, 0, *range(2, 2 + window.rank)]
    kernel = ctx.op("Transpose", ct, perm=swap)
    image = ctx.op("Transpose", x, perm=swap) if group == 1 else _by_group(ctx, x, group)
    taps = ctx.op(
        "Conv", image, kernel, strides=window.dilations, dilations=window.strides,
        pads=window.pads, group=group,
    )  # fmt: skip
    # Where ct's size is symbolic, inference does not even know the rank.
    ctx.declare(taps, (None,) * (2 + window.rank))
    have = spatial(ctx, taps)
    if have != window.kernel:  # positions beyond the last window look like further taps
        ends = ctx.const(np.array(window.kernel))
        axes = ctx.const(np.arange(2, 2 + window.rank))
        taps = ctx.op("Slice", taps, ctx.const(np.zeros(window.rank, dtype=np.int64)), ends, axes)
    return ctx.op("Transpose", taps, perm=swap)


def _by_group(ctx: RuleContext, x: Name, group: int) -> Name:
    """(N, g C', S) → (C', g N, S)."""
    rank = ctx.rank(x)
    sizes = ctx.shape(x)
    batch, space = _part(ctx, sizes, 0, 1), _part(ctx, sizes, 2, rank)
    g, rest = ctx.const(np.array([group])), ctx.const(np.array([-1]))
    parts = ctx.op("Reshape", x, ctx.op("Concat", batch, g, rest, space, axis=0))
    parts = ctx.op("Transpose", parts, perm=[2, 1, 0, *range(3, rank + 1)])
    channels = (ctx.static_shape(x) or ())[1]
    first = rest if channels is None else ctx.const(np.array([channels // group]))
    second = ctx.op("Mul", g, batch)
    return ctx.op("Reshape", parts, ctx.op("Concat", first, second, space, axis=0))


def _part(ctx: RuleContext, vector: Name, start: int, end: int) -> Name:
    return ctx.op("Slice", vector, ctx.const(np.array([start])), ctx.const(np.array([end])))


def _bias_gradient(ctx: RuleContext, ct: Name) -> Name:
    axes = [0, *range(2, ctx.rank(ct))]
    return ctx.op("ReduceSum", ct, ctx.const(np.array(axes)), keepdims=0)


def _transposed_window(ctx: RuleContext, node: ForwardNode) -> Window:
    """Window of a ConvTranspose, its pads derived from output_shape or auto_pad where given."""
    kernel = _kernel(ctx, node)
    rank = len(kernel)
    strides = list(node.attributes.get("strides") or [1] * rank)
    dilations = list(node.attributes.get("dilations") or [1] * rank)
    padding = list(node.attributes.get("output_padding") or [0] * rank)
    mode = node.attributes.get("auto_pad", "NOTSET")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    target = node.attributes.get("output_shape")
    if target:
        totals = _totals_to(ctx, node, list(target)[-rank:], strides, padding, extent)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(e - s + o, 0) for e, s, o in zip(extent, strides, padding, strict=True)]
    else:
        pads = list(node.attributes.get("pads") or [0] * (2 * rank))
        pads = [0] * (2 * rank) if mode == "VALID" else pads
        return Window(kernel, strides, dilations, pads[:rank], pads[rank:])
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    return Window(kernel, strides, dilations, before, after)


def _totals_to(
    ctx: RuleContext,
    node: ForwardNode,
    target: list[int],
    strides: list[int],
    padding: list[int],
    extent: list[int],
) -> list[int]:
    sizes = spatial(ctx, node.inputs[0])
    if None in sizes:
        raise unsupported(
            ctx, node, "output_shape with symbolic spatial dimensions leaves its pads open"
        )
    return [
        max(s * (int(z or 0) - 1) + o + e - t, 0)
        for z, s, o, e, t in zip(sizes, strides, padding, extent, target, strict=True)
    ]
