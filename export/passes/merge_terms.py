"""Add a repeated term once, multiplied."""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import ModelProto, NodeProto

from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def merge_terms(model: ModelProto) -> PassResult:
    """Replace b + b, or a Sum that names a term more than once, by a + n b; a Sum of two by Add.

    The gradient of x x arrives as two equal terms. The factor n is a constant, which
    `order_products` moves to the smallest tensor of the product.

    Requires: floating terms.
    Ensures: outputs equal up to rounding (bit for bit for two equal terms).
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Add", "Sum"):
        counts = Counter(node.input)
        if len(node.input) < 2 or (node.op_type == "Add" and len(counts) == 2):
            continue
        dtype = view.dtype(node.output[0])
        if dtype is None or dtype.kind != "f":
            reasons.append(f"{label(node)}: its terms are not known to be floating")
        elif len(counts) == len(node.input) > 2:
            reasons.append(f"{label(node)}: no term is repeated")
        else:
            _merge(view, node, counts, dtype)
            changed += 1
    return view.result(changed, reasons)


def _merge(
    view: GraphView, node: NodeProto, counts: Counter[str], dtype: np.dtype[np.generic]
) -> None:
    out, nodes, terms = node.output[0], [], []
    for name, times in counts.items():
        if times == 1:
            terms.append(name)
            continue
        factor = view.add_constant(f"{out}_times", np.array(times, dtype))
        product = out if len(counts) == 1 else view.fresh(f"{name}_repeated")
        nodes.append(view.node("Mul", [name, factor], [product]))
        terms.append(product)
    if len(counts) > 1:
        nodes.append(view.node("Add" if len(terms) == 2 else "Sum", terms, [out]))
    view.replace(node, *nodes)
