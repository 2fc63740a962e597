"""Compute the same thing once."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from unblemish.export.passes.fold_constants import RANDOM
from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def share_subexpressions(model: ModelProto) -> PassResult:
    """Let nodes with equal operator, attributes and inputs share one result; small constants too.

    Requires: nothing. Random operators and nodes with subgraphs stay.
    Ensures: the same outputs bit for bit.
    """
    view = GraphView(model)
    changed, reasons = _share_initializers(view), []
    seen: dict[tuple[object, ...], NodeProto] = {}
    for node in list(view.nodes):
        if node.op_type in RANDOM or any(a.HasField("g") or a.graphs for a in node.attribute):
            continue
        first = seen.setdefault(_key(node), node)
        if first is node:
            continue
        if set(node.output) & view.outputs:
            reasons.append(
                f"{label(node)}: equal to {label(first)}, but it gives a graph output its name"
            )
            continue
        if all(view.reroute(o, f) for o, f in zip(node.output, first.output, strict=False) if o):
            view.replace(node)
            changed += 1
    return view.result(changed, reasons)


def _key(node: NodeProto) -> tuple[object, ...]:
    attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
    present = tuple(bool(name) for name in node.output)
    return node.domain, node.op_type, tuple(node.input), tuple(attributes), present


def _share_initializers(view: GraphView) -> int:
    seen: dict[tuple[object, ...], str] = {}
    shared = 0
    for tensor in view.graph.initializer:
        if tensor.name in view.inputs | view.outputs or not view.users(tensor.name):
            continue
        value = view.constant(tensor.name)
        assert value is not None
        if value.nbytes > 1 << 12:
            continue
        first = seen.setdefault((value.dtype.str, value.shape, value.tobytes()), tensor.name)
        shared += first != tensor.name and view.reroute(tensor.name, first)
    return shared
