"""A private, editable copy of a model with the look-ups that rewrites need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from unblemish.export.passes.result import PassResult

Array = NDArray[Any]
DEFAULT_DOMAINS = ("", "ai.onnx")
SHAPE_LIKE = 64  # constants of up to so many elements may describe a shape


class GraphView:
    """The main graph of a model, indexed by value name.

    Nodes are replaced where they stand, so their order stays topological as long as a replacement
    takes its inputs from values computed before the node it replaces. Values that a subgraph (the
    body of If, Loop or Scan) captures count as used by the node that owns the subgraph.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.nodes: list[NodeProto] = list(self.graph.node)
        self.inputs = {value.name for value in self.graph.input}
        self.outputs = {value.name for value in self.graph.output}
        self._tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self._names = _all_names(self.graph)
        self._index()

    def _index(self) -> None:
        self._producer = {name: node for node in self.nodes for name in node.output if name}
        self._users: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in used_names(node):
                self._users.setdefault(name, []).append(node)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self.model.opset_import if o.domain in DEFAULT_DOMAINS), 1)

    def named(self, *op_types: str) -> list[NodeProto]:
        """Nodes of these types of the default domain, in graph order; the list is a copy."""
        return [n for n in self.nodes if n.op_type in op_types and n.domain in DEFAULT_DOMAINS]

    def producer(self, name: str) -> NodeProto | None:
        """The node that computes a value; None for inputs and initialisers."""
        return self._producer.get(name)

    def users(self, name: str) -> list[NodeProto]:
        """Nodes that read a value, one entry for each."""
        return self._users.get(name, [])

    def only_user(self, name: str) -> NodeProto | None:
        """The one node that reads a value; None where others do or it is a graph output."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> Array | None:
        """The array behind an initialiser or Constant node.

        None for anything computed, and for an initialiser that is also a graph input: the caller
        of the model may override that one.
        """
        if name in self.inputs:
            return None
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        node = self._producer.get(name)
        return constant_of(node) if node is not None else None

    def is_constant(self, name: str) -> bool:
        """Whether `constant` has an answer, without reading the array."""
        if name in self.inputs:
            return False
        node = self._producer.get(name)
        return name in self._tensors or (node is not None and constant_of(node) is not None)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Element type where known."""
        element = self.element_type(name)
        return np.dtype(helper.tensor_dtype_to_np_dtype(element)) if element else None

    def element_type(self, name: str) -> int:
        """Element type as ONNX counts them, 0 where not known; NumPy knows no bfloat16."""
        info = self._types.get(name)
        return 0 if info is None else int(info.elem_type)

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Dimensions (str where symbolic, None where unknown); None where the rank is unknown."""
        info = self._types.get(name)
        if info is None or not info.HasField("shape"):
            return None
        return tuple(_dimension(d) for d in info.shape.dim)

    @cached_property
    def _types(self) -> dict[str, Any]:
        known = {t.name: _tensor_type(t) for t in self.graph.initializer}
        inferred = _infer(self.model).graph
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            if value.type.HasField("tensor_type"):
                known[value.name] = value.type.tensor_type
        return known

    def fresh(self, hint: str) -> str:
        """A value or node name that the model does not use yet."""
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name

    def add_constant(self, hint: str, value: Array) -> str:
        """Add an initialiser and return its name."""
        name = self.fresh(hint)
        self.set_constant(name, value)
        return name

    def set_constant(self, name: str, value: Array) -> None:
        """Add an initialiser of a given name, which no node computes (any more)."""
        # ascontiguousarray would turn rank 0 into rank 1.
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        self._tensors[name] = self.graph.initializer[-1]
        self._types[name] = _tensor_type(self._tensors[name])

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> NodeProto:
        """Make a node with a fresh name; it is not part of the graph before `replace`."""
        return helper.make_node(
            op_type, inputs, outputs, name=self.fresh(f"{op_type}_{outputs[0]}"), **attributes
        )

    def replace(self, old: NodeProto, *new: NodeProto) -> None:
        """Put `new` in the place of `old` (nothing: remove it)."""
        at = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[at : at + 1] = new
        self._index()

    def reroute(self, old: str, new: str) -> bool:
        """Make the readers of `old` read `new`; False, nothing done, where a subgraph does."""
        users = self.users(old)
        if any(old not in user.input for user in users):
            return False
        for user in users:
            for i, name in enumerate(user.input):
                if name == old:
                    user.input[i] = new
        self._index()
        return True

    def bypass(self, node: NodeProto) -> bool:
        """Drop a node whose first output equals its first input; False where names forbid it.

        The name of a graph output must survive. Then the producer of the input takes the name over,
        if there is one and nothing outside the main graph refers to the old name.
        """
        source, target = node.input[0], node.output[0]
        if target not in self.outputs:
            if not self.reroute(target, source):
                return False
            self.replace(node)
            return True
        maker = self.producer(source)
        if maker is None or source in self.outputs:
            return False
        self.replace(node)
        if not self.reroute(source, target):
            raise AssertionError("checked by the caller: subgraphs keep their captures")
        maker.output[list(maker.output).index(source)] = target
        self._index()
        return True

    def result(self, changed: int, reasons: Sequence[str] = ()) -> PassResult:
        """Write the nodes back; after a change, forget stored types and unused initialisers."""
        if changed:
            kept = GraphProto()
            kept.node.extend(self.nodes)
            del self.graph.node[:]
            self.graph.node.extend(kept.node)
            del self.graph.value_info[:]
            self._drop_unused_initializers()
        return PassResult(self.model, changed, list(reasons))

    def _drop_unused_initializers(self) -> None:
        needed = (
            {name for node in self.nodes for name in used_names(node)} | self.outputs | self.inputs
        )
        unused = [i for i, t in enumerate(self.graph.initializer) if t.name not in needed]
        for i in reversed(unused):
            del self.graph.initializer[i]


def used_names(node: NodeProto) -> set[str]:
    """Names a node reads, with those its subgraphs capture."""
    names = {name for name in node.input if name}
    for subgraph in _subgraphs(node):
        inner = {n for child in subgraph.node for n in used_names(child)}
        inner |= {value.name for value in subgraph.output}
        own = {n for child in subgraph.node for n in child.output}
        own |= {v.name for v in subgraph.input} | {t.name for t in subgraph.initializer}
        names |= inner - own
    return names


def constant_of(node: NodeProto) -> Array | None:
    """The array of a Constant node, in whichever attribute it stands; None for any other node."""
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    return None


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Attributes as plain Python values."""
    return {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}


def label(node: NodeProto) -> str:
    """How a reason names a node."""
    return f"{node.op_type} '{node.name or node.output[0]}'"


def count_operators(model: ModelProto) -> dict[str, int]:
    """Operator type -> number of nodes of the main graph."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, (list, tuple)) else value


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _all_names(graph: GraphProto) -> set[str]:
    names = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for subgraph in _subgraphs(node):
            names |= _all_names(subgraph)
    return names


def _dimension(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.HasField("dim_param") and dim.dim_param else None


def _tensor_type(tensor: onnx.TensorProto) -> Any:
    return helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)).tensor_type


def _infer(model: ModelProto) -> ModelProto:
    light = _without_weights(model)
    try:
        # data_prop follows shape arithmetic (Shape, Gather, Concat, ... into Reshape).
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return light


def _without_weights(model: ModelProto) -> ModelProto:
    """The model with large initialisers declared as inputs: inference needs their types alone."""
    light = ModelProto()
    for each in model.DESCRIPTOR.fields:
        if each.name != "graph":
            _copy_field(model, light, each.name)
    for each in model.graph.DESCRIPTOR.fields:
        if each.name != "initializer":
            _copy_field(model.graph, light.graph, each.name)
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims) <= SHAPE_LIKE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def _copy_field(source: Any, target: Any, name: str) -> None:
    value = getattr(source, name)
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        if source.HasField(name):
            getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)
