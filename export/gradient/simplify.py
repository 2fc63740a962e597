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
    if op_type == "Cast" and attributes.get("to") == builder.value(first).elem_type:
        return first
    if op_type == "Neg":
        return _undone(builder, first, "Neg") or _outside_expand(builder, op_type, inputs)
    if op_type in ("Reshape", "Expand"):
        return _same_shape(builder, op_type, first, inputs[1])
    if op_type == "Transpose":
        perm = list(attributes.get("perm") or [])
        return first if perm and perm == sorted(perm) else None
    if op_type in _NEUTRAL_RIGHT and len(inputs) == 2:
        return (
            _neutral(builder, op_type, first, inputs[1])
            or _merged_factor(builder, op_type, first, inputs[1])
            or _outside_expand(builder, op_type, inputs)
            or _without_expand(builder, op_type, inputs)
        )
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
    have = [size for size in builder.static_shape(name) or (None,) if size is not None]
    if wanted is None or len(have) != len(builder.static_shape(name) or ()):
        return None
    sizes = tuple(int(size) for size in wanted)
    if op_type == "Expand":
        sizes = np.broadcast_shapes(tuple(have), sizes)
    return name if sizes == tuple(have) else None


def _merged_factor(
    builder: GraphBuilder, op_type: str, first: str, second: str | None
) -> str | None:
    """(x c) d as x (c d), for rank-0 constants c and d."""
    producer = builder.producer.get(first)
    if op_type != "Mul" or producer is None or producer.op_type != "Mul" or second is None:
        return None
    if first not in builder.fresh_values:
        return None
    inner, outer = builder.constant_value(producer.input[1]), builder.constant_value(second)
    if inner is None or outer is None or inner.ndim or outer.ndim:
        return None
    return builder.op("Mul", producer.input[0], builder.const(np.asarray(inner * outer)))


def _expanded(builder: GraphBuilder, name: str | None) -> onnx.NodeProto | None:
    """The Expand of ours that makes a value."""
    producer = builder.producer.get(name) if name in builder.fresh_values else None
    return producer if producer is not None and producer.op_type == "Expand" else None


def _outside_expand(
    builder: GraphBuilder, op_type: str, inputs: Sequence[str | None]
) -> str | None:
    """f(expand(x)) as expand(f(x)), less to compute: for −x, and x with rank-0 constants."""
    expand = _expanded(builder, inputs[0])
    if expand is None or any(n is None or not _is_rank_zero(builder, n) for n in inputs[1:]):
        return None
    small = builder.op(op_type, expand.input[0], *inputs[1:])
    result = builder.op("Expand", small, expand.input[1])
    builder.declare(result, builder.dims(expand.output[0]))
    return result


def _without_expand(
    builder: GraphBuilder, op_type: str, inputs: Sequence[str | None]
) -> str | None:
    """expand(a) ∘ b as a ∘ b where b has the full shape: the operator broadcasts by itself."""
    for index, other in ((0, inputs[1]), (1, inputs[0])):
        expand, name = _expanded(builder, inputs[index]), inputs[index]
        if op_type == "Pow" or expand is None or name is None or other is None:
            continue
        if builder.same_shape(name, other):
            changed = list(inputs)
            changed[index] = expand.input[0]
            return builder.op(op_type, *changed)
    return None


def _is_rank_zero(builder: GraphBuilder, name: str) -> bool:
    array = builder.constant_value(name)
    return array is not None and array.ndim == 0


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
