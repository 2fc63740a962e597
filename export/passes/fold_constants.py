"""Compute what does not depend on any input, once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from unblemish.export.passes.graph_view import GraphView, constant_of, label
from unblemish.export.passes.result import PassResult

RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
# A constant may replace a node only if it costs little more room than what it was computed from.
SMALL_BYTES = 1 << 16


def fold_constants(model: ModelProto, keep: frozenset[str] = frozenset()) -> PassResult:
    """Replace nodes of constant inputs, and Shape or Size of static shapes, by initialisers.

    Args:
        keep: operators that stay, such as those that state a precision.
    Requires: nothing. Values are computed by ONNX's reference implementation of each operator.
    Ensures: no node of the main graph has only constant inputs, except the ones named in `reasons`
    (random, with subgraphs, growing the model, refused by the reference implementation).
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in list(view.nodes):
        if node.op_type in keep:
            continue
        values = _known_shape(view, node)
        if values is None and _is_foldable(view, node):
            values, refusal = _evaluate(view, node)
            if refusal:
                reasons.append(f"{label(node)}: {refusal}")
        if values is None:
            continue
        if any(name in view.outputs for name in node.output):
            reasons.append(f"{label(node)}: it computes a graph output")
            continue
        _fold(view, node, values)
        changed += 1
    return view.result(changed, reasons)


def _is_foldable(view: GraphView, node: NodeProto) -> bool:
    return node.op_type not in RANDOM and all(view.is_constant(name) for name in node.input if name)


def _known_shape(view: GraphView, node: NodeProto) -> list[NDArray[Any]] | None:
    if node.op_type not in ("Shape", "Size") or node.domain:
        return None
    shape = view.shape(node.input[0])
    if shape is None:
        return None
    bounds = {a.name: a.i for a in node.attribute}
    part = (
        shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        if node.op_type == "Shape"
        else shape
    )
    if not all(isinstance(d, int) for d in part):
        return None
    dims = np.asarray(part, np.int64)
    return [dims if node.op_type == "Shape" else np.asarray(dims.prod(), np.int64)]


def _evaluate(view: GraphView, node: NodeProto) -> tuple[list[NDArray[Any]] | None, str]:
    if constant_of(node) is not None:
        return [_required(constant_of(node))], ""
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return None, "it owns a subgraph"
    feeds = {name: _required(view.constant(name)) for name in node.input if name}
    try:
        values = _run(view, node, feeds)
    except Exception as error:  # the reference implementation raises whatever NumPy does
        return None, f"the reference implementation refuses it ({type(error).__name__}: {error})"
    grown = sum(v.nbytes for v in values)
    if grown > max(SMALL_BYTES, 2 * sum(v.nbytes for v in feeds.values())):
        return None, f"its result of {grown} bytes would enlarge the model"
    return values, ""


def _run(view: GraphView, node: NodeProto, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n
    ]
    graph = helper.make_graph([node], "one", inputs, outputs)
    alone = onnx.ModelProto(
        ir_version=view.model.ir_version, graph=graph, functions=view.model.functions
    )
    alone.opset_import.extend(view.model.opset_import)
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(alone).run(None, feeds)
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        raise TypeError("a result is no tensor")
    return [np.asarray(r) for r in results]


def _fold(view: GraphView, node: NodeProto, values: list[NDArray[Any]]) -> None:
    names = [name for name in node.output if name]
    view.replace(node)
    for name, value in zip(names, values, strict=True):
        view.set_constant(name, value)


def _required(value: NDArray[Any] | None) -> NDArray[Any]:
    assert value is not None
    return value
