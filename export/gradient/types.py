"""Element type and dimensions of a value, between ONNX's TypeProto and plain Python."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

Dim = int | str | None

FLOATING = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
"""Element types that carry gradients."""


@dataclass(frozen=True)
class Value:
    """What is known of a value: ONNX element type; dimensions (None where the rank is unknown)."""

    elem_type: int
    dims: tuple[Dim, ...] | None


def from_type(proto: onnx.TypeProto) -> Value:
    """Read a tensor type; sequences, maps and optionals count as of unknown type (0)."""
    if not proto.HasField("tensor_type"):
        return Value(0, None)
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return Value(tensor.elem_type, None)
    return Value(tensor.elem_type, tuple(_dim(d) for d in tensor.shape.dim))


def to_type(value: Value) -> onnx.TypeProto:
    """Write a tensor type."""
    return helper.make_tensor_type_proto(value.elem_type, value.dims)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None
