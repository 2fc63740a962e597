"""Write small powers as products and square roots."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def expand_powers(model: ModelProto) -> PassResult:
    """Replace Pow with the constant exponent 2, 3, 0.5, -0.5 or -1 by Mul, Sqrt and Reciprocal.

    Engines compute Pow element by element through exp and log; a product is tens of times cheaper.

    Requires: a constant exponent of one element and a floating base.
    Ensures: equal values, but for -infinity, of which Sqrt gives NaN and Pow(., 0.5) +infinity.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Pow"):
        exponent = view.constant(node.input[1])
        dtype = view.dtype(node.input[0])
        if exponent is None or exponent.size != 1 or exponent.ndim > 1:
            reasons.append(f"{label(node)}: its exponent is not one constant number")
            continue
        if dtype is None or dtype.kind != "f":
            reasons.append(f"{label(node)}: its base is not known to be floating")
            continue
        shape = view.shape(node.input[0])
        nodes = (
            _expand(view, node, float(exponent.reshape(())))
            if shape or exponent.ndim == 0
            else None
        )
        if nodes is None:
            reasons.append(f"{label(node)}: no cheaper form for exponent {exponent.reshape(())}")
            continue
        view.replace(node, *nodes)
        changed += 1
    return view.result(changed, reasons)


def _expand(view: GraphView, node: NodeProto, exponent: float) -> list[NodeProto] | None:
    x, y = node.input[0], node.output[0]
    if exponent == 2:
        return [view.node("Mul", [x, x], [y])]
    if exponent == 3:
        square = view.fresh(f"{y}_square")
        return [view.node("Mul", [x, x], [square]), view.node("Mul", [square, x], [y])]
    if exponent == 0.5:
        return [view.node("Sqrt", [x], [y])]
    if exponent == -0.5:
        root = view.fresh(f"{y}_root")
        return [view.node("Sqrt", [x], [root]), view.node("Reciprocal", [root], [y])]
    if exponent == -1:
        return [view.node("Reciprocal", [x], [y])]
    return None
