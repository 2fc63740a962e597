"""Bring cotangents to one size before float16 sees them, and the gradients back behind it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto

from unblemish.export.passes.graph_view import GraphView
from unblemish.export.passes.result import PassResult

# Of the largest element: from here values may grow by 2^8 on their way and shrink by 2^22 before
# float16 loses bits. Through an untrained autoencoder they shrink by 2^22, where 1 would not do.
_SIZE = 256.0
_TINY = np.array(1e-30, np.float32)  # cotangents of zeros give gradients of zeros


def scale_cotangents(model: ModelProto) -> PassResult:
    """Divide each image's cotangents by a measure of their size, and multiply its gradients by it.

    s_i = max |ct_i| / 256 over all cotangents; gradients are linear in them: grad_i(ct) =
    s_i grad_i(ct / s_i). Those of a mean over a million pixels are below 6e-8, where float16 ends.

    Requires: a graph of `differentiate`, with inputs ct_<output> and outputs grad_<input>.
    Ensures: the same gradients but for rounding. One scale for all images where a gradient has no
    batch axis, such as that of weights.
    """
    view = GraphView(model)
    cotangents = [v for v in view.graph.input if v.name.startswith("ct_")]
    gradients = [v for v in view.graph.output if v.name.startswith("grad_")]
    if not cotangents or not gradients:
        return view.result(0, ["no cotangents: it is no graph of a gradient"])
    by_item = len({_batch(value) for value in (*cotangents, *gradients)}) == 1
    head, scale = _scale(view, cotangents, by_item)
    scaled = {}
    for value in cotangents:
        shape = _column(view, _rank(value), by_item)
        column, scaled[value.name] = view.fresh("ct_scale"), view.fresh(f"{value.name}_unit")
        head.append(view.node("Reshape", [scale, shape], [column]))
        head.append(view.node("Div", [value.name, column], [scaled[value.name]]))
    for node in view.nodes:
        node.input[:] = [scaled.get(name, name) for name in node.input]
    view.nodes = [*head, *view.nodes]
    for value in gradients:
        _scale_back(view, value, scale, by_item)
    return view.result(len(cotangents) + len(gradients))


def _scale(
    view: GraphView, cotangents: list[ValueInfoProto], by_item: bool
) -> tuple[list[NodeProto], str]:
    """Nodes computing s, (batch,) or (1,), and its name."""
    nodes, largest = [], []
    for value in cotangents:
        size, most = view.fresh(f"{value.name}_size"), view.fresh(f"{value.name}_most")
        axes = np.arange(1 if by_item else 0, _rank(value), dtype=np.int64)
        flat = view.add_constant("scale_axes", axes)
        nodes.append(view.node("Abs", [value.name], [size]))
        nodes.append(view.node("ReduceMax", [size, flat], [most], keepdims=0))
        largest.append(most)
    tiny, size = view.add_constant("scale_least", _TINY), view.fresh("cotangent_size")
    share = view.add_constant("scale_share", np.array(1 / _SIZE, np.float32))
    scale = view.fresh("cotangent_scale")
    nodes.append(view.node("Max", [*largest, tiny], [size]))
    return [*nodes, view.node("Mul", [size, share], [scale])], scale


def _scale_back(view: GraphView, value: ValueInfoProto, scale: str, by_item: bool) -> None:
    inner, column = view.fresh(f"{value.name}_unit"), view.fresh("grad_scale")
    for node in view.nodes:
        node.output[:] = [inner if name == value.name else name for name in node.output]
        node.input[:] = [inner if name == value.name else name for name in node.input]
    shape = _column(view, _rank(value), by_item)
    view.nodes.append(view.node("Reshape", [scale, shape], [column]))
    view.nodes.append(view.node("Mul", [inner, column], [value.name]))


def _column(view: GraphView, rank: int, by_item: bool) -> str:
    """The shape that lets s multiply a value of this rank."""
    dims = [-1, *[1] * (rank - 1)] if by_item else [1] * rank
    return view.add_constant("scale_shape", np.array(dims, np.int64))


def _rank(value: ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _batch(value: ValueInfoProto) -> int | str:
    """The first dimension; that of a weight differs from that of an image."""
    dims = value.type.tensor_type.shape.dim
    return (dims[0].dim_param or int(dims[0].dim_value)) if dims else 0
