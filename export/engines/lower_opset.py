"""Relabel a graph as one of an older opset, for engines that stop there."""

from __future__ import annotations

from onnx import ModelProto

from unblemish.errors import UnsupportedOperatorError
from unblemish.export.passes.graph_view import DEFAULT_DOMAINS, GraphView, label
from unblemish.export.passes.result import PassResult

OLDEST = 20
# Opsets 21 to 23 widen the element types of most operators and change only these.
_CHANGED = frozenset({"GroupNormalization", "Attention", "RMSNormalization", "RotaryEmbedding"})
_BLOCKED = ("QuantizeLinear", "DequantizeLinear")  # by attributes that are new in opset 21
_NEW = ("block_size", "output_dtype")


def lower_opset(model: ModelProto, newest: int) -> PassResult:
    """Call a graph of opset 21 to 23 one of `newest`, 20 or later, where that changes nothing.

    Raises: UnsupportedOperatorError naming the node that means something else there.
    """
    view = GraphView(model)
    if view.opset <= newest:
        return view.result(0, [f"it is of opset {view.opset} already"])
    for node in view.nodes:
        given = {a.name for a in node.attribute if a.i}
        blocked = node.op_type in _BLOCKED and given.intersection(_NEW)
        if newest < OLDEST or node.op_type in _CHANGED or blocked:
            raise UnsupportedOperatorError(
                f"{label(node)} of opset {view.opset} means something else in opset {newest}, the "
                "newest that this TensorRT takes. Use a newer TensorRT."
            )
    for entry in view.model.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = newest
    return view.result(1)
