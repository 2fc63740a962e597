"""Gradients of activation functions; attribute defaults are those of the ONNX standard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule

Names = Sequence[Name | None]

# Selu's constants are attributes with these defaults in the standard.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _positive(ctx: RuleContext, x: Name, threshold: float = 0.0) -> Name:
    return ctx.op("Greater", x, ctx.scalar(threshold, x))


@rule("Relu", "ThresholdedRelu")
def relu(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct where x > α (0 for Relu), zero elsewhere.

    Relu is asked by its output, which is positive where x is: then nothing else reads x, and
    engines fuse the Relu with what made x.
    """
    ct, x = cotangents[0], node.inputs[0]
    if node.op_type == "Relu":
        positive = _positive(ctx, node.outputs[0])
    else:
        positive = _positive(ctx, x, node.attributes.get("alpha", 1.0))
    return [ctx.op("Where", positive, ct, ctx.scalar(0.0, x))]


@rule("LeakyRelu")
def leaky_relu(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct where x > 0, α ct elsewhere."""
    x, alpha = node.inputs[0], node.attributes.get("alpha", 0.01)
    slope = ctx.op("Where", _positive(ctx, x), ctx.scalar(1.0, x), ctx.scalar(alpha, x))
    return [ctx.op("Mul", cotangents[0], slope)]


@rule("PRelu")
def prelu(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x where x > 0, a x elsewhere: grad_x = ct or a ct, grad_a = Σ ct x where x ≤ 0."""
    ct, (x, slope) = cotangents[0], node.inputs
    mask, zero = _positive(ctx, x), ctx.scalar(0.0, x)
    grad_x = ctx.op("Where", mask, ct, ctx.op("Mul", ct, slope)) if ctx.needs(x) else None
    grad_slope = None
    if ctx.needs(slope):
        part = ctx.op("Where", mask, zero, ctx.op("Mul", ct, x))
        grad_slope = ctx.sum_to(part, slope)
    return [grad_x, grad_slope]


@rule("Elu", "Selu", "Celu")
def elu(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Exponential units, by their own output y where x ≤ 0.

    Elu: y + α; Selu: y + γ α, and γ where x > 0; Celu: y / α + 1.
    """
    ct, x, y = cotangents[0], node.inputs[0], node.outputs[0]
    linear = 1.0
    if node.op_type == "Selu":
        linear = node.attributes.get("gamma", _SELU_GAMMA)
        alpha = node.attributes.get("alpha", _SELU_ALPHA) * linear
        curved = ctx.op("Add", y, ctx.scalar(alpha, y))
    elif node.op_type == "Elu":
        curved = ctx.op("Add", y, ctx.scalar(node.attributes.get("alpha", 1.0), y))
    else:
        inverse = ctx.scalar(1.0 / node.attributes.get("alpha", 1.0), y)
        curved = ctx.op("Add", ctx.op("Mul", y, inverse), ctx.scalar(1.0, y))
    slope = ctx.op("Where", _positive(ctx, x), ctx.scalar(linear, x), curved)
    return [ctx.op("Mul", ct, slope)]


@rule("Sigmoid")
def sigmoid(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct y (1 − y)."""
    y = node.outputs[0]
    return [ctx.op("Mul", cotangents[0], _bump(ctx, y))]


def _bump(ctx: RuleContext, y: Name) -> Name:
    return ctx.op("Mul", y, ctx.op("Sub", ctx.scalar(1.0, y), y))


@rule("Tanh")
def tanh(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct (1 − y²)."""
    return [ctx.op("Mul", cotangents[0], _one_minus_square(ctx, node.outputs[0]))]


def _one_minus_square(ctx: RuleContext, y: Name) -> Name:
    return ctx.op("Sub", ctx.scalar(1.0, y), ctx.op("Mul", y, y))


@rule("HardSigmoid")
def hard_sigmoid(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = clip(α x + β, 0, 1): α ct where 0 < y < 1."""
    ct, y, alpha = cotangents[0], node.outputs[0], node.attributes.get("alpha", 0.2)
    zero, one = ctx.scalar(0.0, y), ctx.scalar(1.0, y)
    inside = ctx.op("And", ctx.op("Greater", y, zero), ctx.op("Less", y, one))
    return [ctx.op("Where", inside, ctx.op("Mul", ct, ctx.scalar(alpha, y)), zero)]


@rule("HardSwish")
def hard_swish(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x clip(x/6 + 1/2, 0, 1): slope x/3 + 1/2 for |x| < 3, zero below, one above."""
    x = node.inputs[0]
    ramp = ctx.op("Add", ctx.op("Mul", x, ctx.scalar(1 / 3, x)), ctx.scalar(0.5, x))
    low = ctx.op("Where", _positive(ctx, x, -3.0), ramp, ctx.scalar(0.0, x))
    above = ctx.op("GreaterOrEqual", x, ctx.scalar(3.0, x))
    slope = ctx.op("Where", above, ctx.scalar(1.0, x), low)
    return [ctx.op("Mul", cotangents[0], slope)]


@rule("Gelu")
def gelu(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x Φ(x): ct (Φ(x) + x φ(x)), or the derivative of the tanh approximation."""
    x = node.inputs[0]
    tanh_form = node.attributes.get("approximate", "none") == "tanh"
    slope = _gelu_tanh(ctx, x) if tanh_form else _gelu_erf(ctx, x)
    return [ctx.op("Mul", cotangents[0], slope)]


def _gelu_erf(ctx: RuleContext, x: Name) -> Name:
    half = ctx.scalar(0.5, x)
    error = ctx.op("Erf", ctx.op("Mul", x, ctx.scalar(np.sqrt(0.5), x)))
    cdf = ctx.op("Add", ctx.op("Mul", error, half), half)
    bell = ctx.op("Exp", ctx.op("Mul", ctx.op("Mul", x, x), ctx.scalar(-0.5, x)))
    density = ctx.op("Mul", bell, ctx.scalar(1 / np.sqrt(2 * np.pi), x))
    return ctx.op("Add", cdf, ctx.op("Mul", x, density))


def _gelu_tanh(ctx: RuleContext, x: Name) -> Name:
    """u = √(2/π)(x + c x³), t = tanh u: slope ½(1 + t) + ½ x (1 − t²) u'."""
    root, cubic = np.sqrt(2 / np.pi), 0.044715
    square, half = ctx.op("Mul", x, x), ctx.scalar(0.5, x)
    inner = ctx.op("Add", ctx.op("Mul", square, ctx.scalar(root * cubic, x)), ctx.scalar(root, x))
    t = ctx.op("Tanh", ctx.op("Mul", x, inner))
    outer = ctx.op(
        "Add", ctx.op("Mul", square, ctx.scalar(3 * root * cubic, x)), ctx.scalar(root, x)
    )
    bend = ctx.op("Mul", ctx.op("Mul", x, _one_minus_square(ctx, t)), outer)
    both = ctx.op("Add", ctx.op("Add", t, ctx.scalar(1.0, x)), bend)
    return ctx.op("Mul", both, half)


@rule("Mish")
def mish(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x t with t = tanh(softplus x): ct (t + x σ(x) (1 − t²))."""
    x = node.inputs[0]
    t = ctx.op("Tanh", ctx.op("Softplus", x))
    bend = ctx.op("Mul", ctx.op("Mul", x, ctx.op("Sigmoid", x)), _one_minus_square(ctx, t))
    return [ctx.op("Mul", cotangents[0], ctx.op("Add", t, bend))]


@rule("Softplus")
def softplus(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """ct σ(x)."""
    return [ctx.op("Mul", cotangents[0], ctx.op("Sigmoid", node.inputs[0]))]


@rule("Softsign")
def softsign(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y = x / (1 + |x|): ct / (1 + |x|)²."""
    x = node.inputs[0]
    reach = ctx.op("Add", ctx.op("Abs", x), ctx.scalar(1.0, x))
    return [ctx.op("Div", cotangents[0], ctx.op("Mul", reach, reach))]
