"""Leave broadcasting to the operators that do it anyway."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult

BROADCASTING = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", "Where")
Shape = tuple[int | str | None, ...]


def drop_expands(model: ModelProto) -> PassResult:
    """Remove Expand before element-wise operators whose other operand has the full shape.

    The gradient of a mean expands one number per pixel to all channels, only to multiply it: the
    expanded tensor costs a pass over memory, and in some engines a change of layout as well.

    Requires: a target shape that is constant, or the Shape of a tensor of known rank; every reader
    an operator of `BROADCASTING` with another operand of exactly that shape (symbols included).
    Ensures: the same outputs bit for bit.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Expand"):
        reason = _refusal(view, node)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            view.bypass(node)
            changed += 1
    return view.result(changed, reasons)


def _refusal(view: GraphView, node: NodeProto) -> str:
    out = node.output[0]
    target = _target(view, node)
    if target is None or None in target:
        return "its target shape is not known"
    if out in view.outputs:
        return "it computes a graph output"
    for user in view.users(out):
        others = [name for name in user.input if name != out]
        if user.op_type not in BROADCASTING or out not in user.input:
            return f"{label(user)} needs the full tensor"
        if not any(view.shape(name) == target for name in others):
            return f"no other operand of {label(user)} is known to have the full shape"
    return ""


def _target(view: GraphView, node: NodeProto) -> Shape | None:
    maker = view.producer(node.input[1])
    if maker is not None and maker.op_type == "Shape" and not maker.attribute:
        return view.shape(maker.input[0])
    value, given = view.constant(node.input[1]), view.shape(node.input[0])
    if value is None or given is None or not all(isinstance(d, int) for d in given):
        return None
    return tuple(int(d) for d in np.broadcast_shapes(given, tuple(value)))  # type: ignore[arg-type]
