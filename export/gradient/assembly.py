"""Write the three graphs out of one builder: fused first, then its parts there and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper

from unblemish.errors import ModelError
from unblemish.export.gradient.builder import GraphBuilder
from unblemish.export.gradient.lighten import lightened
from unblemish.export.gradient.normalise import IR_VERSION, WORKING_OPSET, WorkingGraph
from unblemish.export.gradient.partition import NOMINAL, Split, split
from unblemish.export.gradient.report import KeptTensor, Report
from unblemish.export.gradient.types import Value, to_type

Graphs = tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto, Report]


def assemble(
    builder: GraphBuilder,
    work: WorkingGraph,
    wrt: list[str],
    outputs: list[str],
    gradients: dict[str, str],
    expanded: tuple[str, ...],
) -> Graphs:
    """Return forward, backward, fused and report; `gradients` maps each of `wrt` to its value."""
    writer = _Writer(builder, work, wrt)
    inputs = [i.name for i in work.inputs]
    inputs += [name for name in wrt if name in work.initialisers]
    originals = [o.name for o in work.outputs]
    cotangents = [f"ct_{name}" for name in outputs]
    grads = [f"grad_{name}" for name in wrt]
    _name_gradients(builder, gradients)
    live = live_nodes(builder.nodes, [*originals, *grads])
    there, back = _directions(live, [*cotangents], grads)
    choice = split(
        there,
        _reads(back, cotangents),
        frozenset([*inputs, *originals]),
        writer.size,
        writer.is_constant,
    )
    kept = [*choice.stored]
    extra = [name for name in kept if name not in originals and name not in inputs]
    fused = writer.model("fused", live, [*inputs, *cotangents], [*originals, *grads])
    forward = writer.model(
        "forward", live_nodes(there, [*originals, *extra]), inputs, [*originals, *extra]
    )
    backward = writer.model("backward", [*choice.repeated, *back], [*kept, *cotangents], grads)
    counts = {"original": len(work.nodes)} | {
        m.graph.name.rsplit("_", 1)[1]: len(m.graph.node) for m in (forward, backward, fused)
    }
    report = Report(
        kept=tuple(writer.kept(name, inputs, originals) for name in kept),
        recomputed=_repeated_values(choice),
        nodes=counts,
        nominal=NOMINAL,
        expanded=expanded,
    )
    return forward, backward, fused, report


def live_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name)
    return kept[::-1]


def _name_gradients(builder: GraphBuilder, gradients: dict[str, str]) -> None:
    """End the graph in public names: rename a value that serves one gradient, else repeat it."""
    uses = list(gradients.values())
    first_backward = {name for node in builder.nodes for name in node.output}
    for name, value in gradients.items():
        public = f"grad_{name}"
        builder.values[public] = builder.values[builder.resolve(value)]
        alone = uses.count(value) == 1 and value in first_backward and value in builder.fresh_values
        if alone:
            _rename(builder.nodes, value, public)
        else:
            builder.nodes.append(
                helper.make_node(
                    "Identity", [builder.resolve(value)], [public], builder.fresh("identity")
                )
            )


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _directions(
    nodes: Sequence[onnx.NodeProto], cotangents: list[str], grads: list[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Nodes that depend on no cotangent, and those that do (or that make a gradient)."""
    dependent, outputs = set(cotangents), set(grads)
    there, back = [], []
    for node in nodes:
        if dependent.intersection(node.input) or outputs.intersection(node.output):
            dependent.update(name for name in node.output if name)
            back.append(node)
        else:
            there.append(node)
    return there, back


def _reads(back: Sequence[onnx.NodeProto], cotangents: Sequence[str]) -> list[str]:
    made = {name for node in back for name in node.output}
    read = [name for node in back for name in node.input if name and name not in made]
    return [name for name in read if name not in cotangents]


def _repeated_values(choice: Split) -> tuple[str, ...]:
    return tuple(name for node in choice.repeated for name in node.output if name)


class _Writer:
    """Makes models out of nodes of the builder."""

    def __init__(self, builder: GraphBuilder, work: WorkingGraph, wrt: list[str]) -> None:
        self.builder, self.work = builder, work
        self.declared = {i.name: i for i in [*work.inputs, *work.outputs]}
        self.variables = {name for name in wrt if name in work.initialisers}

    def is_constant(self, name: str) -> bool:
        """Whether the value is an initialiser that is copied to where it is used."""
        return name in self.builder.initialisers

    def size(self, name: str) -> int:
        """Bytes of a value, symbolic dimensions at their nominal size."""
        value = self.builder.values[name]
        if value.elem_type == 0:
            return 1 << 40
        dims = value.dims if value.dims is not None else (NOMINAL,) * 4
        count = int(np.prod([d if isinstance(d, int) else NOMINAL for d in dims], dtype=np.float64))
        return count * helper.tensor_dtype_to_np_dtype(value.elem_type).itemsize

    def kept(self, name: str, inputs: list[str], outputs: list[str]) -> KeptTensor:
        """Describe a kept tensor."""
        value = self.builder.values[name]
        dtype = str(helper.tensor_dtype_to_np_dtype(value.elem_type))
        source = "input" if name in inputs else "output" if name in outputs else "forward"
        return KeptTensor(name, value.dims, dtype, self.size(name), source)  # type: ignore[arg-type]

    def model(
        self, suffix: str, nodes: Sequence[onnx.NodeProto], inputs: list[str], outputs: list[str]
    ) -> onnx.ModelProto:
        """A checked model; initialisers that its nodes read are copied into it."""
        read = {name for node in nodes for name in node.input}
        made = {name for node in nodes for name in node.output} | set(inputs)
        read |= {name for name in outputs if name not in made}
        constants = [n for n in self.builder.initialisers if n in read and n not in self.variables]
        variables = [n for n in self.variables if n in read or n in inputs]
        graph = helper.make_graph(
            nodes,
            f"{self.work.name}_{suffix}",
            [self._info(n) for n in inputs]
            + [self._info(n) for n in sorted(variables) if n not in inputs],
            [self._info(n) for n in outputs],
            [self.builder.initialisers[n] for n in [*constants, *sorted(variables)]],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", WORKING_OPSET)],
            ir_version=IR_VERSION,
            producer_name="unblemish",
        )
        try:
            onnx.checker.check_model(lightened(model)[0])
        except onnx.checker.ValidationError as cause:
            raise ModelError(
                f"the {suffix} graph breaks the ONNX specification: {cause}"
            ) from cause
        return model

    def _info(self, name: str) -> onnx.ValueInfoProto:
        if name in self.declared:
            return self.declared[name]
        value: Value = self.builder.values[name]
        return helper.make_value_info(name, to_type(value))
