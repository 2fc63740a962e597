"""What need not be emitted: nodes that change nothing, and nodes of constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

if TYPE_CHECKING:
    from unblemish.export.gradient.builder import GraphBuilder

_NEUTRAL_RIGHT = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0, "Pow": 1.0}
_NEUTRAL_LEFT = {"Mul": 1.0, "Add": 0.0}


def shortcut(
    builder: GraphBuilder, op_type: str, inputs: Sequence[str | None], attributes: dict[str, Any]
) -> str | None:
    """Name of the value a node would only repeat; None where the node is needed."""
    first = inputs[0] if inputs else None
    if first is None:
        return None
    if op_type == "Identity" or (op_type == "Sum" and len(inputs) == 1):
        return first
    if (
        op_type == "Cast"
        and attributes.get("to") == builder.values[builder.resolve(first)].elem_type
    ):
        return first
    if op_type == "Neg":
        return _undone(builder, first, "Neg")
    if op_type in ("Reshape", "Expand"):
        return _same_shape(builder, op_type, first, inputs[1])
    if op_type == "Transpose":
        perm = list(attributes.get("perm") or [])
        return first if perm and perm == sorted(perm) else None
    if op_type in _NEUTRAL_RIGHT and len(inputs) == 2:
        return _neutral(builder, op_type, first, inputs[1])
    return None


def evaluate(
    node: onnx.NodeProto, arrays: dict[str, NDArray[Any] | None], opset: int
) -> list[NDArray[Any]] | None:
    """Run one node on NumPy arrays; None where the reference cannot."""
    try:
        results = ReferenceEvaluator(node, opsets={"": opset}).run(None, arrays)
    except Exception:
        # Folding is a convenience: what the reference lacks stays a node.
        return None
    arrays_out = [np.asarray(r) for r in results]
    return arrays_out if len(arrays_out) == len(node.output) else None


def _undone(builder: GraphBuilder, name: str, op_type: str) -> str | None:
    producer = builder.producer.get(name)
    return producer.input[0] if producer is not None and producer.op_type == op_type else None


def _same_shape(builder: GraphBuilder, op_type: str, name: str, target: str | None) -> str | None:
    wanted = builder.constant_value(target) if target else None
    have = builder.static_shape(name)
    if wanted is None or have is None or None in have:
        return None
    if op_type == "Expand":
        return name if np.broadcast_shapes(have, tuple(wanted)) == have else None
    return name if tuple(wanted) == have else None


def _neutral(builder: GraphBuilder, op_type: str, first: str, second: str | None) -> str | None:
    if second is None:
        return None
    if _is_scalar(builder, second, _NEUTRAL_RIGHT[op_type]):
        return first
    if op_type in _NEUTRAL_LEFT and _is_scalar(builder, first, _NEUTRAL_LEFT[op_type]):
        return second
    return None


def _is_scalar(builder: GraphBuilder, name: str, value: float) -> bool:
    array = builder.constant_value(name)
    return array is not None and array.ndim == 0 and float(array) == value
