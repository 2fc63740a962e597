"""Remove what no output depends on."""

from __future__ import annotations

from onnx import ModelProto

from unblemish.export.passes.graph_view import GraphView, used_names
from unblemish.export.passes.result import PassResult


def drop_dead_nodes(model: ModelProto) -> PassResult:
    """Remove nodes and initialisers from which no graph output can be reached.

    Requires: nodes in topological order, as the ONNX checker demands.
    Ensures: inputs and outputs keep names, order and types; values are untouched. `changed` counts
    nodes and initialisers.
    """
    view = GraphView(model)
    needed = set(view.outputs)
    kept = []
    for node in reversed(view.nodes):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed |= used_names(node)
    dead = len(view.nodes) - len(kept)
    before = len(view.graph.initializer)
    unused = sum(t.name not in needed | view.inputs for t in view.graph.initializer)
    view.nodes = kept[::-1]
    result = view.result(dead + unused)
    assert len(result.model.graph.initializer) == before - unused
    return result
