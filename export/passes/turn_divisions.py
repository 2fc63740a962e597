"""Divide once per row instead of once per element."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def turn_divisions(model: ModelProto) -> PassResult:
    """Replace x / d by x * Reciprocal(d) where d is smaller than x, or a constant.

    Pixel norm divides (B, C, H, W) by (B, 1, H, W): C times fewer divisions. A constant becomes its
    reciprocal, which `fold_scales` can then fold into weights.

    Requires: a floating divisor with a dimension of 1 where the dividend has a larger or symbolic
    one.
    Ensures: outputs equal up to one more rounding.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Div"):
        reason = _turn(view, node)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _turn(view: GraphView, node: NodeProto) -> str:
    data, divisor = node.input
    dtype = view.dtype(divisor)
    if dtype is None or dtype.kind != "f":
        return "its divisor is not known to be floating"
    if view.is_constant(data):
        return "its dividend is a constant"
    value = view.constant(divisor)
    if value is not None:
        if not np.all(value):
            return "it divides by zero"
        factor = view.add_constant(
            f"{divisor}_reciprocal", (1.0 / value.astype(np.float64)).astype(value.dtype)
        )
        view.replace(node, view.node("Mul", [data, factor], list(node.output)))
        return ""
    if not _is_smaller(view, divisor, data):
        return "its divisor is not known to be smaller than its dividend"
    factor = view.fresh(f"{divisor}_reciprocal")
    view.replace(
        node,
        view.node("Reciprocal", [divisor], [factor]),
        view.node("Mul", [data, factor], list(node.output)),
    )
    return ""


def _is_smaller(view: GraphView, divisor: str, data: str) -> bool:
    small, large = view.shape(divisor), view.shape(data)
    if small is None or large is None or len(small) > len(large):
        return False
    pairs = list(zip((1,) * (len(large) - len(small)) + small, large, strict=True))
    return all(s in (1, n) for s, n in pairs) and any(s == 1 and n != 1 for s, n in pairs)
