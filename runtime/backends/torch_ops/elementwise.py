"""Arithmetic, comparison, logic, casts and choice, element by element."""

from __future__ import annotations

from functools import reduce

import torch

from unblemish.errors import UnsupportedOperatorError
from unblemish.runtime.backends.torch_ops.registry import (
    Tensor,
    TorchNode,
    op,
    register_all,
    torch_dtype,
)

register_all(
    {
        "Add": torch.add,
        "Sub": torch.sub,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Abs": torch.abs,
        "Sqrt": torch.sqrt,
        "Reciprocal": torch.reciprocal,
        "Exp": torch.exp,
        "Log": torch.log,
        "Erf": torch.erf,
        "Sin": torch.sin,
        "Cos": torch.cos,
        "Tan": torch.tan,
        "Asin": torch.asin,
        "Acos": torch.acos,
        "Atan": torch.atan,
        "Sinh": torch.sinh,
        "Cosh": torch.cosh,
        "Asinh": torch.asinh,
        "Acosh": torch.acosh,
        "Atanh": torch.atanh,
        "Ceil": torch.ceil,
        "Floor": torch.floor,
        "Round": torch.round,
        "Sign": torch.sign,
        "IsNaN": torch.isnan,
        "Equal": torch.eq,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "And": torch.logical_and,
        "Or": torch.logical_or,
        "Xor": torch.logical_xor,
        "Not": torch.logical_not,
        "Where": torch.where,
        "Identity": lambda x: x,
    }
)


@op("Div")
def div(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    """Quotient; integers are truncated towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@op("Pow")
def power(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    """a ** b in the type of a."""
    return torch.pow(a, b).to(a.dtype)


@op("Mod")
def mod(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend where fmod=1."""
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@op("Min")
def minimum(node: TorchNode, *inputs: Tensor) -> Tensor:
    """Smallest of all inputs, broadcast."""
    return reduce(torch.minimum, inputs)


@op("Max")
def maximum(node: TorchNode, *inputs: Tensor) -> Tensor:
    """Largest of all inputs, broadcast."""
    return reduce(torch.maximum, inputs)


@op("Sum")
def total(node: TorchNode, *inputs: Tensor) -> Tensor:
    """Sum of all inputs, broadcast."""
    return reduce(torch.add, inputs)


@op("Mean")
def mean(node: TorchNode, *inputs: Tensor) -> Tensor:
    """Mean of all inputs, broadcast."""
    return reduce(torch.add, inputs) / len(inputs)


@op("IsInf")
def is_inf(node: TorchNode, x: Tensor) -> Tensor:
    """Infinite of the signs asked for."""
    positive = torch.isposinf(x) & bool(node.get("detect_positive", 1))
    return positive | (torch.isneginf(x) & bool(node.get("detect_negative", 1)))


@op("Clip")
def clip(
    node: TorchNode, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """min(max(x, low), high), bounds as inputs or (opset < 11) attributes."""
    if node.opset < 11:
        return torch.clamp(x, node.get("min", float("-inf")), node.get("max", float("inf")))
    if low is not None:
        x = torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


@op("Cast")
def cast(node: TorchNode, x: Tensor) -> Tensor:
    """Convert the element type; floating to integer truncates towards zero."""
    return x.to(torch_dtype(node.get("to"), node.dtype))


@op("CastLike")
def cast_like(node: TorchNode, x: Tensor, like: Tensor) -> Tensor:
    """Convert to the element type of `like`."""
    return x.to(like.dtype)


@op("Dropout")
def dropout(
    node: TorchNode, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inference: the identity, and a mask of ones."""
    if training is not None and bool(training):
        raise UnsupportedOperatorError(
            f"Dropout '{node.name}' (opset {node.opset}) is in training mode; expected inference. "
            "Export the model in evaluation mode."
        )
    return x, torch.ones_like(x, dtype=torch.bool)
