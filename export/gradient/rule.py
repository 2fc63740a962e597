"""What a gradient rule is, and the registry of rules: one function per ONNX operator.

A rule gets the forward node and the cotangents of its outputs, and returns one gradient per input.
It emits standard ONNX nodes through the context; it never decides what is kept for the way back:
any forward value may be named, and the partition (see `partition.py`) chooses what is stored and
what is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import UnsupportedOperatorError

Name = str


@dataclass(frozen=True)
class ForwardNode:
    """One operator of the forward graph, attributes as plain Python values or NumPy arrays."""

    op_type: str
    name: str
    inputs: tuple[Name, ...]  # '' where an optional input is absent
    outputs: tuple[Name, ...]  # '' where an optional output is absent
    attributes: dict[str, Any] = field(default_factory=dict)

    def input(self, index: int) -> Name | None:
        """Name of input `index`, None where absent."""
        return self.inputs[index] or None if index < len(self.inputs) else None


class RuleContext(Protocol):
    """The builder a rule writes its nodes with."""

    opset: int

    def op(self, op_type: str, *inputs: Name | None, **attributes: Any) -> Name:
        """Emit a node with one output and return the output's name. None marks an absent input."""

    def ops(
        self, op_type: str, *inputs: Name | None, outputs: int, **attributes: Any
    ) -> tuple[Name, ...]:
        """Emit a node with several outputs."""

    def const(self, value: NDArray[Any]) -> Name:
        """Name of a constant tensor (equal constants are shared)."""

    def scalar(self, value: float, like: Name) -> Name:
        """Rank-0 constant of the dtype of `like`."""

    def dtype(self, name: Name) -> np.dtype[Any]:
        """Element type of a value."""

    def static_shape(self, name: Name) -> tuple[int | None, ...] | None:
        """Known dimensions (None where symbolic); None where not even the rank is known."""

    def dims(self, name: Name) -> tuple[int | str | None, ...] | None:
        """Dimensions as integers or names of symbolic ones, None where a dimension is not known."""

    def rank(self, name: Name) -> int:
        """Rank of a value; ModelError where unknown."""

    def shape(self, name: Name) -> Name:
        """int64 vector of the dimensions: a constant where static, a Shape node otherwise."""

    def constant_value(self, name: Name) -> NDArray[Any] | None:
        """The array behind a constant or initialiser that is not differentiated; None otherwise."""

    def needs(self, name: Name | None) -> bool:
        """Whether a gradient of this value is wanted (floating, on a path from `wrt`)."""

    def sum_to(self, cotangent: Name, like: Name) -> Name:
        """Undo broadcasting: sum `cotangent` to the shape of `like` (nothing where equal)."""

    def same_shape(self, first: Name, second: Name) -> bool:
        """Whether two values are known to have equal shapes (symbolic ones by their names)."""

    def zeros_like(self, name: Name) -> Name:
        """Zeros of the shape and dtype of a value."""

    def declare(self, name: Name, dims: tuple[int | str | None, ...] | None) -> None:
        """State dimensions that inference cannot find; ShapeError where they contradict it."""


def unsupported(ctx: RuleContext, node: ForwardNode, reason: str) -> UnsupportedOperatorError:
    """The error of a rule for a case it does not cover: names node, operator, opset and reason."""
    return UnsupportedOperatorError(
        f"node '{node.name}' ({node.op_type}, opset {ctx.opset}) cannot be differentiated: {reason}"
    )


Rule = Callable[[RuleContext, ForwardNode, Sequence[Name | None]], Sequence[Name | None]]

RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register the gradient rule of one or more operators of the default ONNX domain."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if op_type in RULES:
                raise ValueError(f"two gradient rules for {op_type}")
            RULES[op_type] = function
        return function

    return register
