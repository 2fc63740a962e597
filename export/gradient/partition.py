"""Choose what the way back stores and what it computes again: a minimum cut over tensor bytes.

Every forward value is a pair of vertices with an edge of the cost of storing it; using a value
joins it to what is computed from it. A cut between the inputs and what the way back reads is a
choice of stored tensors; its capacity is their size plus the memory traffic of what is computed
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx

from unblemish.errors import MissingDependencyError

NOMINAL = 32
"""Size that a symbolic dimension counts as."""

_VIEWS = """Reshape Unsqueeze Squeeze Flatten Shape Identity ConstantOfShape Size Range"""
_LIGHT = """
    Add Sub Mul Div Neg Abs Sign Relu LeakyRelu Clip Min Max Where Cast Equal Greater GreaterOrEqual
    Less LessOrEqual And Or Not Xor Sum Mean HardSigmoid HardSwish ThresholdedRelu PRelu Floor Ceil
    Round IsNaN Expand Slice Concat Split Gather Transpose Reciprocal Sqrt Pad NonZero"""
_HEAVIER = "Exp Log Sigmoid Tanh Erf Sin Cos Pow Softplus Softsign Elu Selu Celu Gelu Mish"
RECOMPUTE_PERCENT = {
    op: percent
    for ops, percent in ((_VIEWS, 0), (_LIGHT, 15), (_HEAVIER, 60))
    for op in ops.split()
}
"""Cost of computing an output again, in percent of storing it; other operators are never repeated.

A pass over memory costs time, not memory: light operators count as a small part of their bytes, so
that chains of them are not repeated to save little; transcendental ones as more.
"""


@dataclass(frozen=True)
class Split:
    """The choice: names of stored values, and the forward nodes to repeat on the way back."""

    stored: tuple[str, ...]
    repeated: tuple[onnx.NodeProto, ...]


def split(
    forward: Sequence[onnx.NodeProto],
    read: Iterable[str],
    free: frozenset[str],
    size: Callable[[str], int],
    constants: Callable[[str], bool],
) -> Split:
    """Find the cheapest set of values to store.

    Args:
        forward: nodes that do not depend on a cotangent, in order.
        read: values that nodes of the way back read.
        free: values whose buffers the caller holds anyway (graph inputs and outputs).
        size: bytes of a value.
        constants: whether a value is an initialiser, and thus copied to where it is used.
    Returns: the stored values in the order of their computation, and the repeated nodes.
    """
    needed = [name for name in dict.fromkeys(read) if name and not constants(name)]
    producer = {name: node for node in forward for name in node.output if name}
    source_side = _cut(needed, producer, free, size, constants)
    stored, repeated = _collect(needed, producer, source_side, constants)
    order = {name: i for i, name in enumerate(producer)}
    ranked = sorted(stored, key=lambda name: order.get(name, -1))
    return Split(tuple(ranked), tuple(n for n in forward if id(n) in repeated))


def _cut(
    needed: list[str],
    producer: dict[str, onnx.NodeProto],
    free: frozenset[str],
    size: Callable[[str], int],
    constants: Callable[[str], bool],
) -> set[str]:
    """Values that are computed on the way there (their first vertex is on the source's side)."""
    if not needed:
        return set()
    try:
        import networkx  # type: ignore[import-untyped]
    except ModuleNotFoundError as cause:
        raise MissingDependencyError("networkx", "onnx", "choosing what to keep") from cause
    graph = networkx.DiGraph()
    pending, seen = list(needed), set(needed)
    for name in needed:
        graph.add_edge(("out", name), "sink")
    while pending:
        name = pending.pop()
        cost = 100 * max(size(name), 1)
        graph.add_edge(("in", name), ("out", name), capacity=1 if name in free else cost)
        node = producer.get(name)
        percent = None if node is None else RECOMPUTE_PERCENT.get(node.op_type)
        if node is None or percent is None:
            graph.add_edge("source", ("in", name))
            continue
        graph.add_edge("source", ("in", name), capacity=cost * percent // 100 + 1)
        for operand in node.input:
            if operand and not constants(operand):
                graph.add_edge(("out", operand), ("in", name))
                if operand not in seen:
                    seen.add(operand)
                    pending.append(operand)
    _, (reachable, _) = networkx.minimum_cut(graph, "source", "sink")
    return {vertex[1] for vertex in reachable if vertex != "source" and vertex[0] == "in"}


def _collect(
    needed: list[str],
    producer: dict[str, onnx.NodeProto],
    source_side: set[str],
    constants: Callable[[str], bool],
) -> tuple[set[str], set[int]]:
    stored: set[str] = set()
    repeated: set[int] = set()
    pending = list(needed)
    while pending:
        name = pending.pop()
        if not name or constants(name) or name in stored:
            continue
        if name in source_side:
            stored.add(name)
        elif id(producer[name]) not in repeated:
            repeated.add(id(producer[name]))
            pending.extend(producer[name].input)
    return stored, repeated
