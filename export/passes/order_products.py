"""Multiply small tensors first, and constants once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto

from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult

PRODUCT = ("Mul", "Div", "Neg")


@dataclass
class _Product:
    """Factors of a chain of Mul, Div and Neg: one number, tensors, and tensors to divide by."""

    number: float = 1.0
    factors: list[str] = field(default_factory=list)
    divisors: list[str] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)


def order_products(model: ModelProto) -> PassResult:
    """Rebuild chains of Mul, Div and Neg so that large tensors are touched as seldom as possible.

    All single constants become one, multiplied to the smallest factor; then factors are joined from
    the smallest to the largest. -((a r) (1/n)) x with a, r of one channel and x of C costs one pass
    over C channels instead of up to four.

    Requires: float32 or float64 (an intermediate r^3 may leave the range of float16); known shapes;
    inner products read by nothing else.
    Ensures: fewer elements computed, or as many by fewer nodes; outputs equal up to rounding.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for root in [n for n in view.named(*PRODUCT) if not _is_inner(view, n)]:
        chain = _Product()
        _flatten(view, root, root, chain)
        if len(chain.nodes) < 2:
            continue
        reason = _refusal(view, root, chain)
        if reason:
            reasons.append(f"{label(root)}: {reason}")
        else:
            changed += _rebuild(view, root, chain)
    return view.result(changed, reasons)


def _is_inner(view: GraphView, node: NodeProto) -> bool:
    user = view.only_user(node.output[0])
    if user is None or user.op_type not in PRODUCT or user.domain:
        return False
    return user.op_type != "Div" or user.input[0] == node.output[0]


def _flatten(view: GraphView, node: NodeProto, root: NodeProto, chain: _Product) -> None:
    chain.nodes.append(node)
    if node.op_type == "Neg":
        chain.number = -chain.number
    if node.op_type == "Div":
        _take_divisor(view, node.input[1], chain)
    for name in node.input[: 2 if node.op_type == "Mul" else 1]:
        maker = view.producer(name)
        value = _number(view, name)
        if value is not None:
            chain.number *= value
        elif maker is not None and maker.op_type in PRODUCT and view.only_user(name) is node:
            _flatten(view, maker, root, chain)
        else:
            chain.factors.append(name)


def _take_divisor(view: GraphView, name: str, chain: _Product) -> None:
    value = _number(view, name)
    if value:
        chain.number /= value
    else:
        chain.divisors.append(name)


def _number(view: GraphView, name: str) -> float | None:
    """A constant of one element and of a rank that cannot widen the product."""
    value = view.constant(name)
    if value is None or value.size != 1 or value.ndim > 1:
        return None
    return float(value.reshape(()))


def _refusal(view: GraphView, root: NodeProto, chain: _Product) -> str:
    dtype = view.dtype(root.output[0])
    if dtype is None or dtype not in (np.float32, np.float64):
        return f"its type is {dtype}"
    names = (*chain.factors, *chain.divisors)
    if not chain.factors or any(not view.shape(name) for name in names):
        return "a factor is of unknown rank or a single number"
    if not np.isfinite(chain.number) or chain.number == 0:
        return f"its constant is {chain.number}"
    return ""


def _rebuild(view: GraphView, root: NodeProto, chain: _Product) -> bool:
    plan = list(_plan(view, chain))
    before = sum(_size(view.shape(n.output[0])) for n in chain.nodes)
    after = sum(size for _, _, size in plan)
    if (after, len(plan)) >= (before, len(chain.nodes)):
        return False
    dtype = view.dtype(root.output[0])
    out, current, nodes = root.output[0], "", []
    for step, (op, name, _) in enumerate(plan):
        if op == "number":
            name = view.add_constant(f"{out}_number", np.array(chain.number, dtype))
        result = out if step == len(plan) - 1 else view.fresh(f"{out}_part")
        first = current or _smallest(view, chain)
        nodes.append(view.node("Div" if op == "divisor" else "Mul", [first, name], [result]))
        current = result
    for node in chain.nodes:
        if node is not root:
            view.replace(node)
    view.replace(root, *nodes)
    return True


def _smallest(view: GraphView, chain: _Product) -> str:
    """The smallest factor, with which a product starts."""
    return min(chain.factors, key=lambda name: _size(view.shape(name)))


def _plan(view: GraphView, chain: _Product) -> Iterator[tuple[str, str, float]]:
    """Steps (kind, operand, elements of the result) after the first factor."""
    first = _smallest(view, chain)
    shape: tuple[object, ...] = view.shape(first) or ()
    rest = list(chain.factors)
    rest.remove(first)
    steps = [("factor", name) for name in rest] + [("divisor", name) for name in chain.divisors]
    steps.sort(key=lambda step: _size(view.shape(step[1])))
    if chain.number != 1.0:
        yield "number", "", _size(shape)
    for kind, name in steps:
        shape = _broadcast(shape, view.shape(name) or ())
        yield kind, name, _size(shape)


def _broadcast(a: tuple[object, ...], b: tuple[object, ...]) -> tuple[object, ...]:
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


def _size(shape: tuple[object, ...] | None) -> float:
    # A symbolic dimension, the batch as a rule, counts a little more than 1: larger than none.
    return float(prod(d if isinstance(d, int) else 1.5 for d in shape or ()))
