"""Gradients of normalisations.

With x̂ = (x − μ) r, r = 1/√(σ² + ε), means over the normalised axes and g the cotangent of x̂:
grad_x = r (g − mean(g) − x̂ mean(g x̂)). float16 is widened to float32 within, as going forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported

Names = Sequence[Name | None]


@rule("BatchNormalization")
def batch_normalization(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """At inference y = (x − μ) f + b with f = s/√(v + ε), all per channel."""
    if node.attributes.get("training_mode", 0):
        raise unsupported(ctx, node, "it is in training mode; export the model for inference")
    ct, (x, scale, bias, mean, var) = cotangents[0], node.inputs
    assert ct is not None
    shifted_var = ctx.op("Add", var, ctx.scalar(node.attributes.get("epsilon", 1e-5), var))
    deviation = ctx.op("Sqrt", shifted_var)
    factor = ctx.op("Div", scale, deviation)
    grads: list[Name | None] = [None] * 5
    if ctx.needs(x):
        grads[0] = _cast(ctx, ctx.op("Mul", ct, _per_channel(ctx, _cast(ctx, factor, ct), x)), x)
    if any(ctx.needs(name) for name in (bias, mean)):
        total = _cast(ctx, _channel_sum(ctx, ct), bias)
        grads[2] = total
        grads[3] = _cast(ctx, ctx.op("Neg", ctx.op("Mul", total, _cast(ctx, factor, total))), mean)
    if any(ctx.needs(name) for name in (scale, var)):
        centred = ctx.op("Sub", x, _per_channel(ctx, _cast(ctx, mean, x), x))
        product = _cast(ctx, _channel_sum(ctx, ctx.op("Mul", ct, centred)), scale)
        grads[1] = ctx.op("Div", product, _cast(ctx, deviation, scale))
        half = ctx.op("Mul", ctx.op("Mul", _cast(ctx, product, var), _cast(ctx, factor, var)),
                      ctx.scalar(-0.5, var))  # fmt: skip
        grads[4] = ctx.op("Div", half, shifted_var)
    return grads


def _per_channel(ctx: RuleContext, vector: Name, like: Name) -> Name:
    """(C) → (C, 1, …), to broadcast over batch and space."""
    rank = ctx.rank(like)
    if rank == 2:
        return vector
    return ctx.op("Reshape", vector, ctx.const(np.array([-1, *[1] * (rank - 2)])))


def _channel_sum(ctx: RuleContext, name: Name) -> Name:
    axes = [0, *range(2, ctx.rank(name))]
    return ctx.op("ReduceSum", name, ctx.const(np.array(axes)), keepdims=0)


def _cast(ctx: RuleContext, name: Name, like: Name) -> Name:
    return ctx.op("Cast", name, to=helper.np_dtype_to_tensor_dtype(ctx.dtype(like)))


def _widened(ctx: RuleContext, name: Name) -> Name:
    return ctx.op("Cast", name, to=TensorProto.FLOAT) if ctx.dtype(name).itemsize < 4 else name


def _standardised(ctx: RuleContext, x: Name, axes: list[int], epsilon: float) -> tuple[Name, Name]:
    """x̂ and r over the axes."""
    over = ctx.const(np.array(axes))
    centred = ctx.op("Sub", x, ctx.op("ReduceMean", x, over, keepdims=1))
    var = ctx.op("ReduceMean", ctx.op("Mul", centred, centred), over, keepdims=1)
    deviation = ctx.op("Sqrt", ctx.op("Add", var, ctx.scalar(epsilon, var)))
    inverse = ctx.op("Reciprocal", deviation)
    return ctx.op("Mul", centred, inverse), inverse


def _through(ctx: RuleContext, g: Name, hat: Name, inverse: Name, axes: list[int]) -> Name:
    """r (g − mean(g) − x̂ mean(g x̂))."""
    over = ctx.const(np.array(axes))
    mean = ctx.op("ReduceMean", g, over, keepdims=1)
    slope = ctx.op("ReduceMean", ctx.op("Mul", g, hat), over, keepdims=1)
    inner = ctx.op("Sub", ctx.op("Sub", g, mean), ctx.op("Mul", hat, slope))
    return ctx.op("Mul", inner, inverse)


@rule("InstanceNormalization")
def instance_normalization(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Normalised per sample and channel; scale and bias per channel."""
    (x, scale, bias), epsilon = node.inputs, node.attributes.get("epsilon", 1e-5)
    ct, wide = _wide_pair(ctx, cotangents[0], x)
    axes = list(range(2, ctx.rank(x)))
    hat, inverse = _standardised(ctx, wide, axes, epsilon)
    grads: list[Name | None] = [None, None, None]
    if ctx.needs(x):
        g = ctx.op("Mul", ct, _per_channel(ctx, _widened(ctx, scale), x))
        grads[0] = _cast(ctx, _through(ctx, g, hat, inverse, axes), x)
    if ctx.needs(scale):
        grads[1] = _cast(ctx, _channel_sum(ctx, ctx.op("Mul", ct, hat)), scale)
    if ctx.needs(bias):
        grads[2] = _cast(ctx, _channel_sum(ctx, ct), bias)
    return grads


def _wide_pair(ctx: RuleContext, ct: Name | None, x: Name) -> tuple[Name, Name]:
    assert ct is not None
    return _widened(ctx, ct), _widened(ctx, x)


@rule("LayerNormalization")
def layer_normalization(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Normalised over the axes from `axis` on; scale and bias broadcast over the others."""
    if any(cotangents[1:]):
        raise unsupported(ctx, node, "its statistics are used as outputs; compute them apart")
    x, scale, bias = node.inputs[0], node.inputs[1], node.input(2)
    ct, wide = _wide_pair(ctx, cotangents[0], x)
    rank = ctx.rank(x)
    axes = list(range(node.attributes.get("axis", -1) % rank, rank))
    hat, inverse = _standardised(ctx, wide, axes, node.attributes.get("epsilon", 1e-5))
    grads: list[Name | None] = [None, None, None]
    if ctx.needs(x):
        g = ctx.op("Mul", ct, _widened(ctx, scale))
        grads[0] = _cast(ctx, _through(ctx, g, hat, inverse, axes), x)
    if ctx.needs(scale):
        grads[1] = _cast(ctx, ctx.sum_to(ctx.op("Mul", ct, hat), scale), scale)
    if bias is not None and ctx.needs(bias):
        grads[2] = _cast(ctx, ctx.sum_to(ct, bias), bias)
    return grads


@rule("GroupNormalization")
def group_normalization(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Normalised per sample and group of channels, seen as (N, groups, −1); scale per channel."""
    (x, scale, bias), epsilon = node.inputs, node.attributes.get("epsilon", 1e-5)
    ct, wide = _wide_pair(ctx, cotangents[0], x)
    grouped = ctx.const(np.array([0, node.attributes["num_groups"], -1]))
    hat, inverse = _standardised(ctx, ctx.op("Reshape", wide, grouped), [2], epsilon)
    grads: list[Name | None] = [None, None, None]
    if ctx.needs(x):
        g = ctx.op("Mul", ct, _per_channel(ctx, _widened(ctx, scale), x))
        inner = _through(ctx, ctx.op("Reshape", g, grouped), hat, inverse, [2])
        grads[0] = _cast(ctx, ctx.op("Reshape", inner, ctx.shape(x)), x)
    if ctx.needs(scale):
        full = ctx.op("Reshape", hat, ctx.shape(x))
        grads[1] = _cast(ctx, _channel_sum(ctx, ctx.op("Mul", ct, full)), scale)
    if ctx.needs(bias):
        grads[2] = _cast(ctx, _channel_sum(ctx, ct), bias)
    return grads


@rule("LpNormalization")
def lp_normalization(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x/n, n = ‖x‖_p along the axis: (ct − u Σ ct y)/n with u = y (p = 2) or sign x (p = 1).

    Where n = 0 there is no gradient: zero is given.
    """
    ct, x, y = cotangents[0], node.inputs[0], node.outputs[0]
    axes = ctx.const(np.array([node.attributes.get("axis", -1)]))
    square = node.attributes.get("p", 2) == 2
    norm = ctx.op("ReduceL2" if square else "ReduceL1", x, axes, keepdims=1)
    zero = ctx.op("Equal", norm, ctx.scalar(0.0, norm))
    norm = ctx.op("Where", zero, ctx.scalar(np.inf, norm), norm)
    along = ctx.op("ReduceSum", ctx.op("Mul", ct, y), axes, keepdims=1)
    unit = y if square else ctx.op("Sign", x)
    return [ctx.op("Div", ctx.op("Sub", ct, ctx.op("Mul", unit, along)), norm)]
