"""Gradients of the trigonometric and hyperbolic functions beyond Sin, Cos and Tanh."""

from __future__ import annotations

from collections.abc import Sequence

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule

Names = Sequence[Name | None]


@rule("Tan")
def tangent(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """(tan x)' = 1 + y²."""
    ct, y = cotangents[0], node.outputs[0]
    return [ctx.op("Mul", ct, ctx.op("Add", ctx.op("Mul", y, y), ctx.scalar(1.0, y)))]


@rule("Sinh", "Cosh")
def hyperbolic(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """(sinh x)' = cosh x, (cosh x)' = sinh x."""
    slope = ctx.op("Cosh" if node.op_type == "Sinh" else "Sinh", node.inputs[0])
    return [ctx.op("Mul", cotangents[0], slope)]


@rule("Asin", "Acos")
def inverse_sine(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """(asin x)' = 1 / √(1 - x²) = -(acos x)'."""
    ct, x = cotangents[0], node.inputs[0]
    root = ctx.op("Sqrt", ctx.op("Sub", ctx.scalar(1.0, x), ctx.op("Mul", x, x)))
    grad = ctx.op("Div", ct, root)
    return [grad if node.op_type == "Asin" else ctx.op("Neg", grad)]


@rule("Atan", "Atanh")
def inverse_tangent(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """(atan x)' = 1 / (1 + x²), (atanh x)' = 1 / (1 - x²)."""
    ct, x = cotangents[0], node.inputs[0]
    combine = "Add" if node.op_type == "Atan" else "Sub"
    return [ctx.op("Div", ct, ctx.op(combine, ctx.scalar(1.0, x), ctx.op("Mul", x, x)))]


@rule("Asinh", "Acosh")
def inverse_hyperbolic(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """(asinh x)' = 1 / √(x² + 1), (acosh x)' = 1 / √(x² - 1)."""
    ct, x = cotangents[0], node.inputs[0]
    combine = "Add" if node.op_type == "Asinh" else "Sub"
    root = ctx.op("Sqrt", ctx.op(combine, ctx.op("Mul", x, x), ctx.scalar(1.0, x)))
    return [ctx.op("Div", ct, root)]
