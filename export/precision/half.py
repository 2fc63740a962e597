"""Let convolutions and matrix products run in float16 or bfloat16, by casts in a typed graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from unblemish.export.passes.drop_dead_nodes import drop_dead_nodes
from unblemish.export.passes.graph_view import GraphView, label, used_names
from unblemish.export.passes.result import PassResult
from unblemish.export.precision.elements import rounded, tensor_of

HEAVY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""What pays in half: tensor cores multiply in half and add in float32."""
LIGHT = frozenset({
    "Abs", "Add", "Clip", "Concat", "DepthToSpace", "Equal", "Expand", "Flatten", "Gather",
    "Greater", "GreaterOrEqual", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Max", "MaxPool",
    "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Sign", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""What moves, selects, compares or adds a few values; it takes the type of the widest of them."""
_OWN_TYPE = {"Resize": frozenset({1, 2})}  # inputs that stay float32 whatever the data
_LOST = 2.0**-7  # relative l2 rounding error of weights; bfloat16 at its worst has 2^-9


def halve(
    model: ModelProto,
    element: int,
    *,
    half_inputs: Collection[str] = (),
    may_be_half: Collection[str] = (),
) -> PassResult:
    """Give convolutions and matrix products, and what is light between them, a half type.

    Everything else (reductions, normalisations, softmax, exp, sigmoid, ...) computes in float32, so
    does a light operator with a float32 operand, and graph inputs and outputs stay float32. Weights
    are stored in half where only half reads them.

    Args:
        model: float32; weights may be stored as float16 with a Cast behind them.
        element: `TensorProto.FLOAT16` or `TensorProto.BFLOAT16`.
        half_inputs: float32 inputs that become half, such as tensors kept for the way back.
        may_be_half: outputs that become half where they are computed so.
    Ensures: a strongly typed graph: every operator sees operands of one floating type.
    """
    view = GraphView(model)
    return _Halver(view, element, frozenset(half_inputs), frozenset(may_be_half)).run()


class _Halver:
    """One rewrite. Kinds: 'half', 'full', and 'free' for what is exact or rounded in either."""

    def __init__(
        self, view: GraphView, element: int, half_inputs: frozenset[str], may: frozenset[str]
    ) -> None:
        self.view, self.element, self.may = view, element, may
        self.half_inputs = half_inputs
        self.kinds: dict[str, str] = dict.fromkeys(half_inputs, "half")
        # A subgraph reads values by name: those keep their type.
        self.pinned = {n for node in view.nodes for n in used_names(node) - set(node.input)}
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.changed = 0
        self.reasons: list[str] = []

    def run(self) -> PassResult:
        """Decide and rewrite in one walk: a node's operands are decided before it."""
        for node in self.view.nodes:
            kind = self._kind(node)
            self.kinds |= {name: kind for name in node.output if self._floating(name)}
            self._rewrite(node, kind)
        for value in self.view.graph.input:
            if value.name in self.half_inputs:  # after all types were inferred as they were
                value.type.tensor_type.elem_type = self.element
        self.view.nodes = self.nodes
        made = self.view.result(self.changed, self.reasons)
        return PassResult(drop_dead_nodes(made.model).model, made.changed, made.reasons)

    def _kind(self, node: NodeProto) -> str:
        if node.op_type == "Constant" or (
            node.op_type == "Cast" and not self._is_float32(node.input[0])
        ):
            return "free"
        if self.pinned.intersection(node.output):
            return "full"
        if node.op_type in HEAVY:
            return "half" if self._fits(node) else "full"
        if node.op_type not in LIGHT:
            return "full"
        found = {self._kind_of(name) for name in self._operands(node)} - {"free"}
        return "free" if not found else "full" if "full" in found else "half"

    def _kind_of(self, name: str) -> str:
        return "free" if self.view.is_constant(name) else self.kinds.get(name, "full")

    def _fits(self, node: NodeProto) -> bool:
        """Whether its constants survive the rounding, neither too large nor too small for it."""
        for name in self._operands(node):
            array = self._constant(name)
            if array is None:
                continue
            wide = array.astype(np.float64)
            lost = np.linalg.norm(rounded(array, self.element) - wide)
            if not lost <= _LOST * np.linalg.norm(wide):
                self.reasons.append(f"{label(node)}: '{name}' does not fit the type")
                return False
        return True

    def _constant(self, name: str) -> NDArray[Any] | None:
        """A constant, also one stored in half behind a Cast."""
        maker = self.view.producer(name)
        if maker is not None and maker.op_type == "Cast":
            stored = self.view.constant(maker.input[0])
            return None if stored is None else stored.astype(np.float32)
        return self.view.constant(name)

    def _operands(self, node: NodeProto) -> list[str]:
        own = _OWN_TYPE.get(node.op_type, frozenset())
        return [n for i, n in enumerate(node.input) if n and i not in own and self._floating(n)]

    def _floating(self, name: str) -> bool:
        return self.kinds.get(name) == "half" or self._is_float32(name)

    def _is_float32(self, name: str) -> bool:
        return self.view.element_type(name) == TensorProto.FLOAT

    def _rewrite(self, node: NodeProto, kind: str) -> None:
        half = kind == "half"
        fixed = _OWN_TYPE.get(node.op_type, frozenset())
        for i, name in enumerate(node.input):
            if name and i not in fixed and self._floating(name):
                is_half = self._kind_of(name) == "half"
                if half != is_half:
                    node.input[i] = self._as(name, self.element if half else TensorProto.FLOAT)
        self.nodes.append(node)
        if half:
            self.changed += 1
            for i, name in enumerate(node.output):
                if name in self.view.outputs and self._floating(name):
                    self._give_out(node, i)

    def _as(self, name: str, element: int) -> str:
        """The value in another type: a constant converted here, anything else by one Cast."""
        key = (name, element)
        if key not in self.casts:
            self.casts[key] = (
                self._cast(name, name, "wide", element)
                if element == TensorProto.FLOAT
                else self._in_half(name)
            )
        return self.casts[key]

    def _in_half(self, name: str) -> str:
        array = self._constant(name)
        if array is not None:
            target = self.view.fresh(f"{name}_half")
            self.view.graph.initializer.append(tensor_of(array, target, self.element))
            return target
        maker = self.view.producer(name)
        if maker is None or self.kinds.get(name) != "free":
            return self._cast(name, name, "half", self.element)
        if maker.op_type == "Cast":  # a mask: one Cast instead of two
            return self._cast(name, maker.input[0], "half", self.element)
        return self._copy(maker, name)

    def _cast(self, name: str, source: str, suffix: str, element: int) -> str:
        target = self.view.fresh(f"{name}_{suffix}")
        self.nodes.append(self.view.node("Cast", [source], [target], to=element))
        return target

    def _copy(self, maker: NodeProto, name: str) -> str:
        """A light node of free operands once more, in half; the first one may then be dead."""
        copy = NodeProto()
        copy.CopyFrom(maker)
        copy.name = self.view.fresh(f"{maker.name or name}_half")
        for i, given in enumerate(maker.input):
            if given in self._operands(maker):
                copy.input[i] = self._as(given, self.element)
        copy.output[:] = [
            self.view.fresh(f"{given}_half") if given else "" for given in maker.output
        ]
        self.nodes.append(copy)
        pairs = zip(maker.output, copy.output, strict=True)
        self.casts |= {(given, self.element): made for given, made in pairs}
        return self.casts[name, self.element]

    def _give_out(self, node: NodeProto, index: int) -> None:
        """A graph output: half where that is agreed, else cast back under its name."""
        name = node.output[index]
        if name in self.may:
            for value in self.view.graph.output:
                if value.name == name:
                    value.type.tensor_type.elem_type = self.element
            return
        inner = self.view.fresh(f"{name}_half")
        node.output[index] = inner
        self.kinds[inner] = "half"
        self.nodes.append(self.view.node("Cast", [inner], [name], to=TensorProto.FLOAT))
        # Readers behind it take the half value, not the one cast back.
        self.casts[name, self.element] = inner
        self.kinds[name] = "full"
