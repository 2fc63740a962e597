"""Reverse-mode differentiation of ONNX graphs: a model in, the graphs of its gradient out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from unblemish.errors import ModelError, ShapeError, UnsupportedOperatorError
from unblemish.export.gradient import rules as _rules
from unblemish.export.gradient.assembly import assemble
from unblemish.export.gradient.builder import GraphBuilder
from unblemish.export.gradient.loading import read_model
from unblemish.export.gradient.normalise import WORKING_OPSET, WorkingGraph, normalise
from unblemish.export.gradient.report import Report
from unblemish.export.gradient.rule import RULES, ForwardNode
from unblemish.export.gradient.types import FLOATING, Value

__all__ = ["Differentiated", "differentiate"]

_rules.load()

# Floating results that are constant almost everywhere, or depend on shapes alone.
ZERO_GRADIENT = frozenset(
    {"Ceil", "Floor", "Round", "Sign", "Shape", "Size", "ConstantOfShape", "EyeLike",
     "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
     "Multinomial", "ArgMax", "ArgMin", "NonZero", "QuantizeLinear", "Hardmax"}
)  # fmt: skip


@dataclass(frozen=True)
class Differentiated:
    """The graphs of a model's gradient, in standard operators of opset 21.

    Attributes:
        forward: original inputs → original outputs, then the tensors kept for the way back.
        backward: kept tensors and `ct_<output>` → `grad_<input>`.
        fused: original inputs and `ct_<output>` → original outputs and `grad_<input>`.
        report: which tensors are kept (`report.kept`), what is computed again, node counts.

    The inputs of `backward` are `report.kept` by name, then the cotangents. A kept tensor is an
    extra output of `forward`, one of its original outputs, or an original input, fed again from
    the same buffer; `KeptTensor.source` says which.
    """

    forward: onnx.ModelProto
    backward: onnx.ModelProto
    fused: onnx.ModelProto
    report: Report


def differentiate(
    model: str | Path | onnx.ModelProto,
    wrt: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Differentiated:
    """Return graphs that compute a model's gradient, for any engine that runs the model.

    For y = f(x) and a cotangent c of the shape of y, grad_x = (∂f/∂x)ᵀ c; gradients of several
    outputs are summed. The graphs hold standard ONNX operators only. Initialisers count as
    constants, also those listed as inputs, unless `wrt` names them: then they become inputs with
    the initialiser as default. Integer and boolean values carry no gradient; a `wrt` that no output
    depends on gets zeros.

    Args:
        model: path or ModelProto of opset 9 to 23; static or symbolic dimensions; float16, float32
            or float64. It is not changed.
        wrt: names of inputs or initialisers to differentiate with respect to; None: every floating
            input.
        outputs: names of the outputs to differentiate; None: every floating output.
    Returns: the forward, backward and fused graphs and the report, owned by the caller.
    Raises: UnsupportedOperatorError naming node, operator and opset where an operator has no rule;
        ModelError when the model cannot be read or converted, or a name is wrong (the message lists
        the candidates); ShapeError when its shapes do not fit together.
    Example:
        >>> result = differentiate("decoder.onnx", wrt=["z"])  # doctest: +SKIP
        >>> print(result.report)                               # doctest: +SKIP
    """
    proto = read_model(model)
    work = normalise(proto)
    expand = _expandable(work)
    if expand:
        work = normalise(proto, expand)
    wrt_names = _chosen("wrt", wrt, _differentiable_inputs(work, wrt))
    output_names = _chosen("outputs", outputs, _floating_outputs(work))
    _refuse_reserved(work, wrt_names, output_names)
    builder = _forward(work, wrt_names)
    grads = _Reverse(builder, work, wrt_names, output_names).run()
    forward, backward, fused, report = assemble(
        builder, work, wrt_names, output_names, grads, tuple(sorted(expand))
    )
    return Differentiated(forward, backward, fused, report)


def _expandable(work: WorkingGraph) -> frozenset[str]:
    """Operators without a rule that the standard defines by others."""
    found = set()
    for node in work.nodes:
        if node.op_type in RULES or node.op_type in ZERO_GRADIENT:
            continue
        schema: Any = onnx.defs.get_schema(node.op_type, WORKING_OPSET, "")
        floating = any(
            work.values[n].elem_type in FLOATING for n in node.output if n in work.values
        )
        if floating and (schema.has_function or schema.has_context_dependent_function):
            found.add(node.op_type)
    return frozenset(found)


def _differentiable_inputs(work: WorkingGraph, wrt: Sequence[str] | None) -> list[str]:
    names = [i.name for i in work.inputs]
    if wrt is not None:
        names += list(work.initialisers)
    return [name for name in names if work.values[name].elem_type in FLOATING]


def _floating_outputs(work: WorkingGraph) -> list[str]:
    return [o.name for o in work.outputs if work.values[o.name].elem_type in FLOATING]


def _chosen(what: str, asked: Sequence[str] | None, candidates: list[str]) -> list[str]:
    names = candidates if asked is None else [asked] if isinstance(asked, str) else list(asked)
    wrong = [name for name in names if name not in candidates]
    if wrong or not names:
        shown = ", ".join(candidates[:20]) + (", …" if len(candidates) > 20 else "")
        raise ModelError(
            f"{what}={names} cannot be differentiated: expected names of floating values out of "
            f"[{shown}], found {wrong or 'none'}; correct the names"
        )
    return list(dict.fromkeys(names))


def _refuse_reserved(work: WorkingGraph, wrt: list[str], outputs: list[str]) -> None:
    """The names of cotangents and gradients belong to the engine."""
    reserved = {f"ct_{name}" for name in outputs} | {f"grad_{name}" for name in wrt}
    taken = set(work.values) | {name for node in work.nodes for name in node.output}
    for name in sorted(reserved & taken):
        raise ModelError(
            f"the model has a value '{name}', a name that its gradient graphs need for a cotangent "
            "or gradient; rename the value"
        )


def _forward(work: WorkingGraph, wrt: list[str]) -> GraphBuilder:
    """A builder that holds the forward graph."""
    reserved = set(work.values) | {n.name for n in work.nodes}
    reserved |= {name for node in work.nodes for name in (*node.input, *node.output)}
    builder = GraphBuilder(WORKING_OPSET, reserved)
    builder.variables = {name for name in wrt if name in work.initialisers}
    for tensor in work.initialisers.values():
        builder.add_initialiser(tensor)
    for info in work.inputs:
        builder.values[info.name] = work.values[info.name]
    pinned = {o.name for o in work.outputs}
    for node in work.nodes:
        builder.adopt(node, work.values, pinned)
    return builder


class _Reverse:
    """One reverse pass: cotangents flow from the outputs to `wrt` through the rules."""

    def __init__(
        self, builder: GraphBuilder, work: WorkingGraph, wrt: list[str], outputs: list[str]
    ) -> None:
        self.builder, self.work, self.wrt, self.outputs = builder, work, wrt, outputs
        self.nodes = list(builder.nodes)
        self.cotangents: dict[str, list[str]] = {}

    def run(self) -> dict[str, str]:
        """Emit the way back; returns the value of each gradient by name of `wrt`."""
        self.builder.active = self._active()
        self._refuse_unsupported()
        for name in self.outputs:
            cotangent = f"ct_{name}"
            self.builder.values[cotangent] = self.builder.values[name]
            self.cotangents.setdefault(name, []).append(cotangent)
        for node in reversed(self.nodes):
            self._visit(node)
        return {name: self._total(name) or self.builder.zeros_like(name) for name in self.wrt}

    def _active(self) -> set[str]:
        """Floating values on a path from `wrt` to a differentiated output."""
        reached = set(self.wrt)
        for node in self.nodes:
            if node.op_type not in ZERO_GRADIENT and reached.intersection(node.input):
                reached.update(n for n in node.output if n and self._floating(n))
        leading = set(self.outputs)
        for node in reversed(self.nodes):
            if node.op_type not in ZERO_GRADIENT and leading.intersection(node.output):
                leading.update(n for n in node.input if n)
        return reached & leading

    def _floating(self, name: str) -> bool:
        return self.builder.values[name].elem_type in FLOATING

    def _on_path(self, node: onnx.NodeProto) -> bool:
        active = self.builder.active
        return not active.isdisjoint(node.output) and not active.isdisjoint(node.input)

    def _refuse_unsupported(self) -> None:
        missing = [n for n in self.nodes if self._on_path(n) and n.op_type not in RULES]
        if missing:
            others = sorted({node.op_type for node in missing})
            raise UnsupportedOperatorError(
                f"node '{missing[0].name}' ({missing[0].op_type}, opset {WORKING_OPSET}) has no "
                f"gradient rule; operators of this model without one: {', '.join(others)}; replace "
                "them, or choose `wrt` or `outputs` so that no path leads through them"
            )

    def _visit(self, node: onnx.NodeProto) -> None:
        if not self._on_path(node):
            return
        cotangents = [self._total(name) if name else None for name in node.output]
        if all(cotangent is None for cotangent in cotangents):
            return
        gradients = RULES[node.op_type](self.builder, forward_node(node), cotangents)
        for name, gradient in zip(node.input, gradients, strict=False):
            if gradient is not None and self.builder.needs(name):
                self._accumulate(node, name, gradient)

    def _accumulate(self, node: onnx.NodeProto, name: str, gradient: str) -> None:
        value: Value = self.builder.values[name]
        if self.builder.dtype(gradient) != self.builder.dtype(name):
            raise ShapeError(
                f"the rule of {node.op_type} gave a gradient of {self.builder.dtype(gradient)} for "
                f"'{name}' of {self.builder.dtype(name)}"
            )
        self.builder.declare(gradient, value.dims)
        self.cotangents.setdefault(name, []).append(gradient)

    def _total(self, name: str) -> str | None:
        parts = self.cotangents.get(name)
        if not parts:
            return None
        total = parts[0] if len(parts) == 1 else self._sum(parts)
        self.cotangents[name] = [total]
        return total

    def _sum(self, parts: list[str]) -> str:
        dims = self.builder.values[parts[0]].dims
        total = self.builder.op("Add" if len(parts) == 2 else "Sum", *parts)
        self.builder.declare(total, dims)
        return total


def forward_node(node: onnx.NodeProto) -> ForwardNode:
    """The node as the rules see it: attributes as plain Python values or NumPy arrays."""
    attributes = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [v.decode() for v in value]
        attributes[attribute.name] = value
    return ForwardNode(node.op_type, node.name, tuple(node.input), tuple(node.output), attributes)
