"""Gradients of reductions, softmax, cumulative sums and ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule
from unblemish.export.gradient.rules.shapes import constant_ints, vector

Names = Sequence[Name | None]


def _axes(ctx: RuleContext, node: ForwardNode) -> list[int] | Name:
    """Reduced axes: constants where known, else the name of the vector."""
    rank = ctx.rank(node.inputs[0])
    name = node.input(1)
    known = constant_ints(ctx, name)
    if name is not None and ctx.static_shape(name) == (0,):
        known = []
    if name is not None and known is None:
        return name
    if not known:
        return [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in known)


def _kept(ctx: RuleContext, node: ForwardNode, value: Name) -> Name:
    """A value of the shape of the result, with the reduced axes as axes of length 1."""
    axes = _axes(ctx, node)
    if isinstance(axes, str):
        return _reshape_computed(ctx, node, value, axes)
    if node.attributes.get("keepdims", 1) or axes == []:
        return value
    return ctx.op("Unsqueeze", value, vector(ctx, axes))


def _reshape_computed(ctx: RuleContext, node: ForwardNode, value: Name, axes: Name) -> Name:
    """Bring to the shape of x with length 1 along computed axes: the rank of y is not known."""
    x = node.inputs[0]
    ones = ctx.op("ConstantOfShape", ctx.op("Shape", axes), value=np.ones(1, np.int64))
    target = ctx.op("ScatterElements", ctx.shape(x), axes, ones, axis=0)
    return ctx.op("Reshape", value, target)


def _sum(ctx: RuleContext, node: ForwardNode, value: Name) -> Name:
    """Sum over the node's axes, keeping them."""
    return _reduced(ctx, node, "ReduceSum", value)


def _reduced(ctx: RuleContext, node: ForwardNode, op_type: str, value: Name) -> Name:
    axes = _axes(ctx, node)
    if axes == []:
        return value
    along = axes if isinstance(axes, str) else vector(ctx, axes)
    noop = node.attributes.get("noop_with_empty_axes", 0)
    result = ctx.op(op_type, value, along, keepdims=1, noop_with_empty_axes=noop)
    return _reshape_computed(ctx, node, result, axes) if isinstance(axes, str) else result


def _cast(ctx: RuleContext, value: Name, like: Name) -> Name:
    return ctx.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(ctx.dtype(like)))


@rule("ReduceSum")
def reduce_sum(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = sum x: every element gets the cotangent of its sum."""
    ct, x = _kept(ctx, node, _given(cotangents)), node.inputs[0]
    return [ctx.op("Expand", ct, ctx.shape(x))]


@rule("ReduceMean")
def reduce_mean(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = sum x / n: ct / n."""
    ct, x = _given(cotangents), node.inputs[0]
    shape, axes = ctx.static_shape(x), _axes(ctx, node)
    lengths = [shape[a] if shape is not None else None for a in axes if isinstance(a, int)]
    if isinstance(axes, str) or None in lengths:
        ratio = ctx.op("Div", ctx.op("Size", x), ctx.op("Size", node.outputs[0]))
        ct = ctx.op("Div", ct, _cast(ctx, ratio, ct))
    else:
        count = float(np.prod([float(n) for n in lengths if n is not None]))
        ct = ctx.op("Mul", ct, ctx.scalar(1.0 / max(count, 1.0), ct))
    return [ctx.op("Expand", _kept(ctx, node, ct), ctx.shape(x))]


@rule("ReduceL1")
def reduce_l1(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = sum |x|: ct sign x."""
    ct = _kept(ctx, node, _given(cotangents))
    return [ctx.op("Mul", ct, ctx.op("Sign", node.inputs[0]))]


@rule("ReduceL2")
def reduce_l2(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = |x|: ct x / y, zero where y = 0."""
    ct, y = _given(cotangents), node.outputs[0]
    zero = ctx.scalar(0.0, ct)
    ratio = ctx.op("Where", ctx.op("Equal", y, zero), zero, ctx.op("Div", ct, y))
    return [ctx.op("Mul", _kept(ctx, node, ratio), node.inputs[0])]


@rule("ReduceSumSquare")
def reduce_sum_square(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = sum x²: 2 ct x."""
    ct = _given(cotangents)
    twice = ctx.op("Mul", ct, ctx.scalar(2.0, ct))
    return [ctx.op("Mul", _kept(ctx, node, twice), node.inputs[0])]


@rule("ReduceLogSum")
def reduce_log_sum(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = log sum x: ct / sum x = ct e^(-y)."""
    ct = ctx.op("Div", _given(cotangents), ctx.op("Exp", node.outputs[0]))
    return [ctx.op("Expand", _kept(ctx, node, ct), ctx.shape(node.inputs[0]))]


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = log sum e^x: ct e^(x - y)."""
    ct, y = _kept(ctx, node, _given(cotangents)), _kept(ctx, node, node.outputs[0])
    return [ctx.op("Mul", ct, ctx.op("Exp", ctx.op("Sub", node.inputs[0], y)))]


@rule("ReduceProd")
def reduce_prod(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = Π x: ct times the product of the others, zeros included.

    With p the product of the non-zero elements and q their number of zeros, the product of the
    others is p / x' (x' = x, or 1 at a zero) where no other element is zero, else 0.
    """
    ct, x = _kept(ctx, node, _given(cotangents)), node.inputs[0]
    is_zero = ctx.op("Equal", x, ctx.scalar(0.0, x))
    filled = ctx.op("Where", is_zero, ctx.scalar(1.0, x), x)
    zeros = _cast(ctx, is_zero, x)
    product = _reduced(ctx, node, "ReduceProd", filled)
    alone = ctx.op("Equal", _sum(ctx, node, zeros), zeros)
    others = ctx.op("Div", ctx.op("Mul", ct, product), filled)
    return [ctx.op("Where", alone, others, ctx.scalar(0.0, ct))]


@rule("ReduceMax", "ReduceMin")
def reduce_extremum(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The cotangent goes to the extreme element, shared equally among equals.

    In float16 an engine may hold x and y in different precision, so that no element equals y: the
    extreme of x - y is compared there, which is computed from the same x.
    """
    ct, x = _given(cotangents), node.inputs[0]
    y = _kept(ctx, node, node.outputs[0])
    if ctx.dtype(x) == np.float16:
        x = ctx.op("Sub", x, y)
        y = _reduced(ctx, node, node.op_type, x)
    chosen = ctx.op("Equal", x, y)
    count = _sum(ctx, node, _cast(ctx, chosen, ct))
    share = ctx.op("Div", _kept(ctx, node, ct), count)
    return [ctx.op("Where", chosen, share, ctx.scalar(0.0, ct))]


@rule("Softmax")
def softmax(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = softmax x: y (ct - sum ct y)."""
    weighted = ctx.op("Mul", _given(cotangents), node.outputs[0])
    total = ctx.op("Mul", _sum_axis(ctx, node, weighted), node.outputs[0])
    return [ctx.op("Sub", weighted, total)]


@rule("LogSoftmax")
def log_softmax(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = log softmax x: ct - e^y sum ct."""
    ct = _given(cotangents)
    total = ctx.op("Mul", _sum_axis(ctx, node, ct), ctx.op("Exp", node.outputs[0]))
    return [ctx.op("Sub", ct, total)]


def _sum_axis(ctx: RuleContext, node: ForwardNode, value: Name) -> Name:
    axis = node.attributes.get("axis", -1)
    return ctx.op("ReduceSum", value, vector(ctx, [axis]), keepdims=1)


@rule("CumSum")
def cumsum(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The transpose of a running sum runs the other way."""
    reverse = 1 - node.attributes.get("reverse", 0)
    exclusive = node.attributes.get("exclusive", 0)
    ct = _given(cotangents)
    return [ctx.op("CumSum", ct, node.inputs[1], reverse=reverse, exclusive=exclusive), None]


@rule("TopK")
def top_k(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The cotangent of the values goes where they were taken from."""
    ct, x = cotangents[0], node.inputs[0]
    if ct is None:
        return [None, None]
    axis = node.attributes.get("axis", -1)
    zeros = ctx.op("ConstantOfShape", ctx.shape(x), value=np.zeros(1, dtype=ctx.dtype(ct)))
    return [ctx.op("ScatterElements", zeros, node.outputs[1], ct, axis=axis), None]


def _given(cotangents: Names) -> Name:
    ct = cotangents[0]
    assert ct is not None
    return ct
