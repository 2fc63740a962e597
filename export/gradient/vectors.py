"""Follow sizes through the nodes that take vectors of sizes apart and join them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

from unblemish.export.gradient.types import Dim

if TYPE_CHECKING:
    from unblemish.export.gradient.values import ValueTable


def vector_of(table: ValueTable, node: onnx.NodeProto) -> tuple[Dim, ...] | None:
    """Elements of the vector of sizes that a node makes; None where it makes none that is known."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Shape":
        dims = table.dims(node.input[0])
        if dims is None:
            return None
        return dims[attributes.get("start", 0) : attributes.get("end", len(dims))]
    if node.op_type == "Concat":
        return _joined(table, node)
    if node.op_type in ("Slice", "Gather"):
        return _picked(table, node)
    return None


def _joined(table: ValueTable, node: onnx.NodeProto) -> tuple[Dim, ...] | None:
    elements: list[Dim] = []
    for name in node.input:
        part = table.vector(name)
        if part is None:
            return None
        elements.extend(part)
    return tuple(elements)


def _picked(table: ValueTable, node: onnx.NodeProto) -> tuple[Dim, ...] | None:
    vector = table.vector(node.input[0])
    if vector is None:
        return None
    numbers: list[list[int]] = []
    for name in node.input[1:]:
        array = table.constant_value(name)
        if array is None or array.ndim != 1:
            return None
        numbers.append([int(v) for v in array])
    if node.op_type == "Gather":
        return tuple(vector[i] for i in numbers[0])
    start, end = numbers[0][0], numbers[1][0]
    step = numbers[3][0] if len(numbers) > 3 else 1
    return vector[start:end:step] if step > 0 else None
