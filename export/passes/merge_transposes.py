"""Merge chains of Transpose."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from unblemish.export.passes.graph_view import GraphView, attributes_of, label
from unblemish.export.passes.result import PassResult


def merge_transposes(model: ModelProto) -> PassResult:
    """Replace two Transposes in a row by one (or none, where they cancel after `drop_identities`).

    Requires: explicit permutations.
    Ensures: the same outputs bit for bit; the first Transpose stays only for its other readers.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Transpose"):
        before = view.producer(node.input[0])
        if before is None or before.op_type != "Transpose":
            continue
        first, second = (attributes_of(n).get("perm") for n in (before, node))
        if first is None or second is None:
            reasons.append(f"{label(node)}: a permutation is left to the default")
            continue
        view.replace(
            node,
            view.node(
                "Transpose", [before.input[0]], list(node.output), perm=[first[i] for i in second]
            ),
        )
        _drop_unread(view, before)
        changed += 1
    return view.result(changed, reasons)


def _drop_unread(view: GraphView, node: NodeProto) -> None:
    if not view.users(node.output[0]) and node.output[0] not in view.outputs:
        view.replace(node)
