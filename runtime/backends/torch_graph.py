"""Any exported ONNX graph as a torch module, with autograd: for fine-tuning and as an oracle.

Written for this project because the published converter requires torchvision, which has no build
for every CPU target. Needs torch and onnx; nothing at plain inspection imports this file.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unblemish.errors import (
    MissingDependencyError,
    ModelError,
    ShapeError,
    UnsupportedOperatorError,
)
from unblemish.runtime.backends.protocol import TensorSpec

try:
    import onnx
    import onnx.inliner
    import torch
    from onnx import numpy_helper
except ImportError as _error:
    raise MissingDependencyError(
        _error.name or "torch", "train", "Running an ONNX graph in torch"
    ) from _error

from unblemish.onnx_files import external_tensors, read_onnx
from unblemish.runtime.backends.torch_ops import OPERATORS, TorchNode
from unblemish.runtime.backends.torch_ops.registry import Tensor, torch_dtype

# Inputs that steer an operator and are no weights, by operator and place.
_SETTINGS: dict[str, frozenset[int]] = {
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "BatchNormalization": frozenset({3, 4}),
    "Dropout": frozenset({1, 2}),
    "OneHot": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
}

# Inputs of which operators read the numbers themselves, by operator and place.
_READ: dict[str, frozenset[int]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze"), frozenset({1})),
    **dict.fromkeys(("Split", "TopK", "OneHot", "Trilu", "CumSum", "Upsample"), frozenset({1})),
    **dict.fromkeys(("Pad", "Resize"), frozenset({1, 2, 3})),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), frozenset({1})),
    **dict.fromkeys(("ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"), frozenset({1})),
    **dict.fromkeys(("ReduceLogSumExp", "ReduceSumSquare"), frozenset({1})),
    "Slice": frozenset({1, 2, 3, 4}),
    "Dropout": frozenset({1, 2}),
}


class TorchGraph(torch.nn.Module):
    """An ONNX graph of the default domain, opsets 9 to 23, run node by node in torch.

    Floating initialisers of rank >= 1 become parameters, except settings (Resize scales, Clip
    bounds, running statistics of BatchNormalization); all others become buffers.

    Args:
        model_or_path: an `onnx.ModelProto`, its bytes, or a path.
        dtype: floating type of everything; None keeps the graph's own types.
    Raises: ModelError where the graph cannot be read; UnsupportedOperatorError for an operator
    without a torch implementation.

    >>> graph = TorchGraph("generator.onnx")   # doctest: +SKIP
    >>> graph(z=torch.zeros(1, 64))["image"]   # doctest: +SKIP
    """

    def __init__(
        self,
        model_or_path: onnx.ModelProto | bytes | str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        model = _load(model_or_path)
        self._dtype = dtype
        self._opset = next(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1
        )
        self._slots: dict[str, str] = {}
        self._numbers = itertools.count()
        graph = model.graph
        self._add_initialisers(graph)
        self._nodes = [self._node(node) for node in graph.node]
        self._dead = _last_uses(self._nodes, {o.name for o in graph.output})
        held = {i.name for i in graph.initializer}
        self.inputs = tuple(_spec(i) for i in graph.input if i.name not in held)
        self.outputs = tuple(_spec(o) for o in graph.output)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Trainable initialisers by their ONNX names."""
        return {
            name: value
            for name, slot in self._slots.items()
            if isinstance(value := getattr(self, slot), torch.nn.Parameter)
        }

    def bind(self, weights: dict[str, Tensor]) -> None:
        """Read weights where these tensors lie, by name, from now on."""
        for name, tensor in weights.items():
            self._parameters[self._slots[name]] = torch.nn.Parameter(tensor)

    def place(self, device: torch.device) -> TorchGraph:
        """Move what is computed with to a device.

        Shapes, axes and the like stay on the host: to read them there would be to wait for the
        device in every pass.
        """
        computed = _computed_with(self._nodes, {spec.name for spec in self.outputs})
        here = {slot for name, slot in self._slots.items() if name not in computed}
        for node in self._nodes:
            if node.outputs and node.outputs[0] not in computed:
                here |= {node.attributes["slot"]} if node.op_type == "Constant" else set()
                node.attributes["on_host"] = True
        for slot, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[slot] = torch.nn.Parameter(parameter.detach().to(device))
        for slot, tensor in self._buffers.items():
            if tensor is not None and slot not in here:
                self._buffers[slot] = tensor.to(device)
        return self

    def freeze(self) -> TorchGraph:
        """Compute what depends on no input now, and never again: for a graph that only runs."""
        rest = []
        for node in self._nodes:
            if node.op_type == "If" or not all(n in self._slots for n in node.inputs if n):
                rest.append(node)
                continue
            known = {name: getattr(self, self._slots[name]) for name in node.inputs if name}
            with torch.no_grad():
                results = self._run(node, known)
            for name, value in zip(node.outputs, results, strict=False):
                self._slots[name] = self._keep(value.detach().contiguous())
        self._nodes = rest
        self._dead = _last_uses(rest, {spec.name for spec in self.outputs})
        self._forget_unread()
        return self

    def _forget_unread(self) -> None:
        read = {name for node in self._nodes for name in node.inputs}
        read |= {spec.name for spec in self.outputs}
        if any(node.op_type == "If" for node in self._nodes):
            return  # branches read by name what is outside of them
        for name in [name for name in self._slots if name not in read]:
            delattr(self, self._slots.pop(name))

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run on named inputs; returns every output of the graph by name.

        Raises: ShapeError where an input is missing, unknown, or has another rank than stated.
        """
        self._check(inputs)
        values = {name: getattr(self, slot) for name, slot in self._slots.items()}
        values |= {n: self._cast(v) for n, v in inputs.items()}
        self._execute(self._nodes, self._dead, values)
        return {spec.name: values[spec.name] for spec in self.outputs}

    def _execute(
        self, nodes: Sequence[TorchNode], dead: Sequence[tuple[str, ...]], values: dict[str, Any]
    ) -> None:
        for node, gone in zip(nodes, dead, strict=True):
            results = self._run(node, values)
            values.update(zip(node.outputs, results, strict=False))
            for name in gone:
                values.pop(name, None)

    def _run(self, node: TorchNode, values: dict[str, Any]) -> Sequence[Tensor]:
        if node.op_type == "Constant":
            return (getattr(self, node.attributes["slot"]),)
        if node.op_type == "If":
            return self._branch(node, values)
        arguments = [values[name] if name else None for name in node.inputs]
        try:
            result = OPERATORS[node.op_type](node, *arguments)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = [None if a is None else (tuple(a.shape), a.dtype) for a in arguments]
            raise ModelError(
                f"{node.op_type} '{node.name}' (opset {node.opset}) failed in torch on inputs "
                f"{shapes}: {error}. Check the shapes fed to the graph."
            ) from error
        return result if isinstance(result, tuple) else (result,)

    def _branch(self, node: TorchNode, values: dict[str, Any]) -> Sequence[Tensor]:
        taken = "then_branch" if bool(values[node.inputs[0]]) else "else_branch"
        nodes, constants, outputs = node.attributes[taken]
        scope = values | {name: getattr(self, slot) for name, slot in constants.items()}
        self._execute(nodes, [()] * len(nodes), scope)
        return [scope[name] for name in outputs]

    def _check(self, inputs: dict[str, Tensor]) -> None:
        expected = {spec.name: spec for spec in self.inputs}
        if set(inputs) != set(expected):
            raise ShapeError(
                f"the graph takes the inputs {sorted(expected)}, found {sorted(inputs)}. "
                "Pass every input by its name."
            )
        for name, value in inputs.items():
            shape = expected[name].shape
            wrong = len(shape) != value.dim() or any(
                isinstance(d, int) and d != n for d, n in zip(shape, value.shape, strict=True)
            )
            if wrong:
                raise ShapeError(
                    f"input '{name}' has shape {tuple(value.shape)}, the graph states {shape}. "
                    "Feed an array of the stated shape."
                )

    def _add_initialisers(self, graph: onnx.GraphProto) -> None:
        settings = _setting_names(graph)
        for tensor in graph.initializer:
            value = self._cast(_tensor(tensor))
            trainable = (
                value.is_floating_point() and value.dim() > 0 and tensor.name not in settings
            )
            self._slots[tensor.name] = self._keep(value, trainable)

    def _keep(self, value: Tensor, trainable: bool = False) -> str:
        slot = f"tensor_{next(self._numbers)}"
        if trainable:
            self.register_parameter(slot, torch.nn.Parameter(value))
        else:
            self.register_buffer(slot, value)
        return slot

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if self._dtype and value.is_floating_point() else value

    def _node(self, node: onnx.NodeProto) -> TorchNode:
        known = node.op_type in OPERATORS or node.op_type in ("Constant", "If")
        if node.domain not in ("", "ai.onnx") or not known:
            domain = f"{node.domain}." if node.domain else ""
            raise UnsupportedOperatorError(
                f"node '{node.name}' ({domain}{node.op_type}, opset {self._opset}) has no torch "
                f"implementation; {len(OPERATORS)} operators of the default domain do. Rewrite it "
                "with standard operators, or run the graph in another backend."
            )
        attributes = {a.name: self._attribute(a) for a in node.attribute}
        if node.op_type == "Constant":
            attributes = {"slot": self._keep(self._constant(attributes))}
        return TorchNode(
            node.op_type,
            node.name,
            tuple(node.input),
            tuple(node.output),
            self._opset,
            attributes,
            self._dtype,
        )

    def _attribute(self, attribute: onnx.AttributeProto) -> Any:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, onnx.TensorProto):
            return self._cast(_tensor(value))
        if isinstance(value, onnx.GraphProto):
            constants = {t.name: self._keep(self._cast(_tensor(t))) for t in value.initializer}
            return [self._node(n) for n in value.node], constants, [o.name for o in value.output]
        return list(value) if not isinstance(value, (int, float, str)) else value

    def _constant(self, attributes: dict[str, Any]) -> Tensor:
        ((name, value),) = attributes.items()
        if name == "value":
            return value  # type: ignore[no-any-return]
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=self._dtype or torch.float32)
        raise ModelError(f"a Constant holds '{name}'; torch runs dense numeric constants only.")


def _load(source: onnx.ModelProto | bytes | str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        if isinstance(source, bytes):
            model = onnx.load_model_from_string(source)
        elif isinstance(source, onnx.ModelProto):
            model = source
        else:
            model = read_onnx(Path(source))
        _refuse_unloaded(model)
    except ModelError:
        raise
    except Exception as error:  # protobuf raises its own unrelated classes
        name = "" if isinstance(source, bytes) else f" {source}"
        raise ModelError(
            f"cannot read the ONNX model{name}: {error}. "
            "Expected an .onnx file with its external data beside it."
        ) from error
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _refuse_unloaded(model: onnx.ModelProto) -> None:
    missing = external_tensors(model)
    if missing:
        raise ModelError(
            f"the values of '{missing[0].name}' are in another file, which bytes and models in "
            "memory do not lead to. Pass the path of the graph."
        )


def _setting_names(graph: onnx.GraphProto) -> set[str]:
    uses: dict[str, set[bool]] = {}
    for node in graph.node:
        places = _SETTINGS.get(node.op_type, frozenset())
        for place, name in enumerate(node.input):
            uses.setdefault(name, set()).add(place in places)
    return {name for name, steers in uses.items() if steers == {True}}


def _computed_with(nodes: Sequence[TorchNode], outputs: set[str]) -> set[str]:
    """Names whose values outputs are made of; of the others only numbers and shapes are read."""
    found = set(outputs)
    for node in reversed(nodes):
        if node.op_type == "If":
            found |= {*node.inputs, *_inner_names(node)}
        elif node.op_type not in ("Shape", "Size") and found & set(node.outputs):
            read = _READ.get(node.op_type, frozenset())
            found |= {name for place, name in enumerate(node.inputs) if place not in read}
    return found


def _last_uses(nodes: Sequence[TorchNode], kept: set[str]) -> list[tuple[str, ...]]:
    # Values named inside a branch of If are seen by it alone: keep them to the end.
    inner = {n for node in nodes if node.op_type == "If" for n in _inner_names(node)}
    seen = kept | inner | {""}
    dead: list[tuple[str, ...]] = []
    for node in reversed(nodes):
        names = dict.fromkeys((*node.inputs, *node.outputs))
        dead.append(tuple(n for n in names if n not in seen))
        seen |= set(names)
    return dead[::-1]


def _inner_names(node: TorchNode) -> Iterable[str]:
    for branch in ("then_branch", "else_branch"):
        nodes, _, outputs = node.attributes[branch]
        yield from outputs
        for inner in nodes:
            yield from inner.inputs
            if inner.op_type == "If":
                yield from _inner_names(inner)


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    array = np.array(numpy_helper.to_array(tensor))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ModelError(f"tensor '{tensor.name}' has type {array.dtype}, which torch cannot hold.")
    return torch.from_numpy(array).to(torch_dtype(tensor.data_type, None))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if not kind.elem_type:
        raise ModelError(
            f"'{value.name}' is no typed tensor (sequence, optional or untyped); torch graphs "
            "take and give tensors. Infer the types of the graph, or use another backend."
        )
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"d{i}"
        for i, d in enumerate(kind.shape.dim)
    )
    return TensorSpec(
        value.name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    )
