"""Gradients of element-wise arithmetic, choices and casts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported

Names = Sequence[Name | None]


@rule("Add", "Sub", "Sum", "Mean")
def add(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Sums pass the cotangent on: y = ±a ± b, and the mean of n operands 1/n of it."""
    ct = cotangents[0]
    assert ct is not None
    if node.op_type == "Mean":
        ct = ctx.op("Mul", ct, ctx.scalar(1.0 / len(node.inputs), ct))
    return [
        ctx.sum_to(_signed(ctx, ct, node.op_type == "Sub" and i == 1), name)
        if ctx.needs(name)
        else None
        for i, name in enumerate(node.inputs)
    ]


def _signed(ctx: RuleContext, value: Name, negative: bool) -> Name:
    return ctx.op("Neg", value) if negative else value


@rule("Mul")
def mul(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = a b: grad_a = ct b, grad_b = ct a."""
    ct, (a, b) = cotangents[0], node.inputs
    assert ct is not None
    if a == b:
        return [ctx.op("Mul", ctx.op("Mul", ct, ctx.scalar(2.0, ct)), a), None]
    return [
        ctx.sum_to(ctx.op("Mul", ct, b), a) if ctx.needs(a) else None,
        ctx.sum_to(ctx.op("Mul", ct, a), b) if ctx.needs(b) else None,
    ]


@rule("Div")
def div(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = a / b: grad_a = ct / b, grad_b = −(ct / b) y."""
    ct, (a, b) = cotangents[0], node.inputs
    assert ct is not None
    if ctx.same_shape(ct, b):
        quotient = ctx.op("Div", ct, b)
    else:  # one division for each element of b, not of y
        quotient = ctx.op("Mul", ct, ctx.op("Reciprocal", b))
    grad_b = None
    if ctx.needs(b):
        grad_b = ctx.op("Neg", ctx.sum_to(ctx.op("Mul", quotient, node.outputs[0]), b))
    return [ctx.sum_to(quotient, a) if ctx.needs(a) else None, grad_b]


@rule("Neg")
def neg(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = −x."""
    return [ctx.op("Neg", cotangents[0])]


@rule("Abs")
def absolute(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = |x|: ct sign(x), zero at zero."""
    return [ctx.op("Mul", cotangents[0], ctx.op("Sign", node.inputs[0]))]


@rule("Pow")
def power(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x^p: grad_x = ct p x^(p−1), zero where p = 0; grad_p = ct y log x, zero where x = 0."""
    ct, (x, p) = cotangents[0], node.inputs
    assert ct is not None
    grad_x = ctx.sum_to(_power_base(ctx, ct, node), x) if ctx.needs(x) else None
    grad_p = None
    if ctx.needs(p):
        zero = ctx.scalar(0.0, x)
        log = ctx.op("Where", ctx.op("Equal", x, zero), zero, ctx.op("Log", x))
        slope = ctx.op("Mul", ctx.op("Mul", ct, node.outputs[0]), log)
        grad_p = ctx.sum_to(_cast_like(ctx, slope, p), p)
    return [grad_x, grad_p]


def _power_base(ctx: RuleContext, ct: Name, node: ForwardNode) -> Name:
    x, p = node.inputs
    value = ctx.constant_value(p)
    if value is not None and value.size == 1:
        return _power_constant(ctx, ct, node, float(value.reshape(())))
    exponent, one = _cast_like(ctx, p, x), ctx.scalar(1.0, x)
    slope = ctx.op("Mul", exponent, ctx.op("Pow", x, ctx.op("Sub", exponent, one)))
    zero = ctx.scalar(0.0, x)
    slope = ctx.op("Where", ctx.op("Equal", exponent, zero), zero, slope)
    return ctx.op("Mul", ct, slope)


def _power_constant(ctx: RuleContext, ct: Name, node: ForwardNode, p: float) -> Name:
    x, y = node.inputs[0], node.outputs[0]
    if p == 0.0:
        return ctx.zeros_like(y)
    if p == 1.0:
        return ct
    scaled = ctx.op("Mul", ct, ctx.scalar(p, x))
    if p == 0.5:
        return ctx.op("Div", scaled, y)
    if p == 2.0:
        return ctx.op("Mul", scaled, x)
    if p == 3.0:
        return ctx.op("Mul", scaled, ctx.op("Mul", x, x))
    return ctx.op("Mul", scaled, ctx.op("Pow", x, ctx.scalar(p - 1.0, x)))


def _cast_like(ctx: RuleContext, name: Name, like: Name) -> Name:
    return ctx.op("Cast", name, to=helper.np_dtype_to_tensor_dtype(ctx.dtype(like)))


@rule("Sqrt")
def sqrt(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = √x: ct / (2 y)."""
    ct, y = cotangents[0], node.outputs[0]
    return [ctx.op("Div", ctx.op("Mul", ct, ctx.scalar(0.5, y)), y)]


@rule("Reciprocal")
def reciprocal(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = 1 / x: −ct y²."""
    y = node.outputs[0]
    return [ctx.op("Neg", ctx.op("Mul", cotangents[0], ctx.op("Mul", y, y)))]


@rule("Exp")
def exp(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = e^x: ct y."""
    return [ctx.op("Mul", cotangents[0], node.outputs[0])]


@rule("Log")
def log(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = log x: ct / x."""
    return [ctx.op("Div", cotangents[0], node.inputs[0])]


@rule("Erf")
def erf(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = erf x: ct 2/√π e^(−x²)."""
    x = node.inputs[0]
    bell = ctx.op("Exp", ctx.op("Neg", ctx.op("Mul", x, x)))
    slope = ctx.op("Mul", bell, ctx.scalar(2.0 / np.sqrt(np.pi), x))
    return [ctx.op("Mul", cotangents[0], slope)]


@rule("Sin", "Cos")
def sine(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """(sin x)' = cos x, (cos x)' = −sin x."""
    x = node.inputs[0]
    if node.op_type == "Sin":
        return [ctx.op("Mul", cotangents[0], ctx.op("Cos", x))]
    return [ctx.op("Neg", ctx.op("Mul", cotangents[0], ctx.op("Sin", x)))]


@rule("Min", "Max")
def extremum(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = min or max of the operands: the cotangent goes to the operand that was chosen.

    Ties are shared equally among the differentiated operands; constants take no part. Operands are
    compared with each other and not with y, which an engine may hold in another precision.
    """
    ct = cotangents[0]
    assert ct is not None
    operands = list(dict.fromkeys(node.inputs))
    comparison = "GreaterOrEqual" if node.op_type == "Max" else "LessOrEqual"
    wanted = [name for name in operands if ctx.needs(name)]
    chosen = {name: _beats(ctx, comparison, name, operands) for name in wanted}
    if len(operands) == 1:
        return [ct, *[None] * (len(node.inputs) - 1)]
    zero = ctx.scalar(0.0, ct)
    if len(wanted) > 1:
        weights = [_cast_like(ctx, mask, ct) for mask in chosen.values() if mask]
        # Where a constant was chosen nobody was: the count is lifted to one to divide by.
        count = ctx.op("Max", ctx.op("Sum", *weights), ctx.scalar(1.0, ct))
        ct = ctx.op("Div", ct, count)
    grads = {n: ctx.sum_to(ctx.op("Where", mask, ct, zero), n) for n, mask in chosen.items()}
    # An operand named twice has one gradient: it is given once.
    return [grads.pop(name, None) for name in node.inputs]


def _beats(ctx: RuleContext, comparison: str, name: Name, operands: list[Name]) -> Name | None:
    """Where an operand is no worse than any other."""
    mask: Name | None = None
    for other in operands:
        if other != name:
            better = ctx.op(comparison, name, other)
            mask = better if mask is None else ctx.op("And", mask, better)
    return mask


@rule("Where")
def where(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = a where c, b elsewhere."""
    ct, (condition, a, b) = cotangents[0], node.inputs
    assert ct is not None
    zero = ctx.scalar(0.0, ct)
    return [
        None,
        ctx.sum_to(ctx.op("Where", condition, ct, zero), a) if ctx.needs(a) else None,
        ctx.sum_to(ctx.op("Where", condition, zero, ct), b) if ctx.needs(b) else None,
    ]


@rule("Cast", "CastLike")
def cast(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The cotangent is cast back."""
    ct = cotangents[0]
    assert ct is not None
    return [_cast_like(ctx, ct, node.inputs[0])]


@rule("Identity")
def identity(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The cotangent is passed on."""
    return [cotangents[0]]


@rule("Dropout")
def dropout(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """At inference the identity; a dropout that is or may be training is refused."""
    training = node.input(2)
    if training is not None:
        flag = ctx.constant_value(training)
        if flag is None or bool(flag):
            raise unsupported(
                ctx, node, "it may be in training mode; export the model for inference"
            )
    return [cotangents[0]]


@rule("Clip")
def clip(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = min(max(x, lo), hi): ct inside and on the bounds; the bounds get the rest."""
    ct, x = cotangents[0], node.inputs[0]
    assert ct is not None
    low, high = node.input(1), node.input(2)
    zero = ctx.scalar(0.0, ct)
    inside = [ctx.op("GreaterOrEqual", x, low)] if low else []
    inside += [ctx.op("LessOrEqual", x, high)] if high else []
    if len(inside) == 2:
        inside = [ctx.op("And", *inside)]
    grad_x = ctx.op("Where", inside[0], ct, zero) if inside else ct
    grads: list[Name | None] = [grad_x if ctx.needs(x) else None, None, None]
    if low and ctx.needs(low):
        grads[1] = ctx.sum_to(ctx.op("Where", ctx.op("Less", x, low), ct, zero), low)
    if high and ctx.needs(high):
        grads[2] = ctx.sum_to(ctx.op("Where", ctx.op("Greater", x, high), ct, zero), high)
    return grads
