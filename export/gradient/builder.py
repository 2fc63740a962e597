"""The graph under construction: emits nodes for the rules, folds and shares what it can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from unblemish.errors import ModelError
from unblemish.export.gradient import simplify, vectors
from unblemish.export.gradient.types import Dim, Value
from unblemish.export.gradient.values import ValueTable

FOLD_LIMIT = 1 << 16
"""Elements above which a constant result stays a node: engines fold it, the file stays small."""

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
                    "Bernoulli", "Multinomial"})  # fmt: skip


class GraphBuilder(ValueTable):
    """Implements `RuleContext`; forward nodes are adopted first, rules emit after them.

    Equal nodes are emitted once, nodes of small constants are folded, and nodes that change nothing
    (Cast to the same type, Reshape to the same shape, product with one) are not emitted.
    """

    def __init__(self, opset: int, reserved: Iterable[str]) -> None:
        super().__init__(opset)
        self.nodes: list[onnx.NodeProto] = []
        self.producer: dict[str, onnx.NodeProto] = {}
        self.active: set[str] = set()  # values that a gradient is wanted of
        self.fresh_values: set[str] = set()  # names that the model does not have
        self._names = set(reserved)
        self._emitted: dict[bytes, tuple[str, ...]] = {}
        self._constants: dict[bytes, str] = {}
        self._counter: dict[str, int] = {}

    def op(self, op_type: str, *inputs: str | None, **attributes: Any) -> str:
        """Emit a node with one output and return the output's name."""
        shortcut = simplify.shortcut(self, op_type, inputs, attributes)
        if shortcut is not None:
            return shortcut
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str | None, outputs: int, **attributes: Any
    ) -> tuple[str, ...]:
        """Emit a node with several outputs."""
        node = helper.make_node(
            op_type, [name or "" for name in inputs], [], **_plain_attributes(attributes)
        )
        known = self._emitted.get(_key(node))
        if known is not None:
            return known[:outputs] if len(known) >= outputs else self._widen(known, outputs)
        node.output.extend(self.fresh(op_type) for _ in range(outputs))
        self.infer(node)
        return self._place(node)

    def const(self, value: NDArray[Any]) -> str:
        """Name of a constant tensor (equal constants are shared)."""
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self._constants:
            name = self.fresh("constant")
            self.add_initialiser(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def scalar(self, value: float, like: str) -> str:
        """Rank-0 constant of the dtype of `like`."""
        return self.const(np.array(value, dtype=self.dtype(like)))

    def shape(self, name: str) -> str:
        """int64 vector of the dimensions: a constant where static, a Shape node otherwise."""
        dims = self.value(name).dims
        if dims is not None and all(isinstance(d, int) for d in dims):
            return self.const(np.array(dims, dtype=np.int64))
        return self.op("Shape", name)

    def needs(self, name: str | None) -> bool:
        """Whether a gradient with respect to this value is wanted."""
        return bool(name) and name in self.active

    def sum_to(self, cotangent: str, like: str) -> str:
        """Undo broadcasting: sum `cotangent` to the shape of `like` (nothing where equal)."""
        if self.same_shape(cotangent, like):
            return cotangent
        have, want = self.value(cotangent).dims, self.value(like).dims
        if have is None or want is None:
            raise ModelError(f"the rank of '{like}' is unknown, and its gradient needs it")
        extra = len(have) - len(want)
        padded: tuple[Dim, ...] = (1,) * extra + want
        if any(_ambiguous(h, w) for h, w in zip(have, padded, strict=True)):
            summed = self._sum_dynamic(cotangent, like, extra)
        else:
            axes = [i for i, (h, w) in enumerate(zip(have, padded, strict=True)) if w == 1 != h]
            summed = self.reduce_sum(cotangent, axes, keepdims=True) if axes else cotangent
        if extra:
            summed = self.op("Reshape", summed, self.shape(like))
        self.declare(summed, want)
        return summed

    def zeros_like(self, name: str) -> str:
        """Zeros of the shape and dtype of a value."""
        zero = np.zeros(1, dtype=self.dtype(name))
        result = self.op("ConstantOfShape", self.shape(name), value=zero)
        self.declare(result, self.value(name).dims)
        return result

    def reduce_sum(self, name: str, axes: Iterable[int], *, keepdims: bool) -> str:
        """Sum over constant axes."""
        vector = self.const(np.array(sorted(axes), dtype=np.int64))
        return self.op("ReduceSum", name, vector, keepdims=int(keepdims))

    def fresh(self, hint: str) -> str:
        """A name that no value or node of the graph has."""
        while True:
            number = self._counter[hint] = self._counter.get(hint, -1) + 1
            name = f"{hint.lower()}_g{number}"
            if name not in self._names:
                self._names.add(name)
                self.fresh_values.add(name)
                return name

    def adopt(self, node: onnx.NodeProto, values: dict[str, Value], pinned: set[str]) -> None:
        """Take over a forward node; equal ones are merged, except where they make graph outputs."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(self._alias.get(name, name) for name in node.input)
        for name in copy.output:
            if name:
                self.values[name] = values.get(name, Value(0, None))
        if any(name and not self.is_static(name) for name in copy.output):
            self.infer_again(copy)
        if not pinned.intersection(copy.output):
            known = self._emitted.get(_key(copy))
            if known is not None and len(known) >= len(copy.output):
                self._alias.update(zip(copy.output, known, strict=False))
                return
        self._place(copy, foldable=not pinned.intersection(copy.output))

    def _sum_dynamic(self, cotangent: str, like: str, extra: int) -> str:
        """Sum over the axes that turn out to be 1 in `like` and more in the cotangent.

        Only where symbolic dimensions leave it open which axes were broadcast.
        """
        want = self.op("Shape", like)
        if extra:
            want = self.op("Concat", self.const(np.ones(extra, dtype=np.int64)), want, axis=0)
        one = self.const(np.array(1, dtype=np.int64))
        longer = self.op("Not", self.op("Equal", self.op("Shape", cotangent), one))
        stretched = self.op("And", self.op("Equal", want, one), longer)
        axes = self.op("Reshape", self.op("NonZero", stretched), self.const(np.array([-1])))
        summed = self.op("ReduceSum", cotangent, axes, keepdims=1, noop_with_empty_axes=1)
        have = self.value(cotangent).dims
        self.values[summed] = Value(self.value(cotangent).elem_type, (None,) * len(have or ()))
        return summed

    def _widen(self, known: tuple[str, ...], outputs: int) -> tuple[str, ...]:
        """Ask an emitted node for further outputs."""
        node = self.producer[known[0]]
        earlier = {name: self.values[name] for name in known if name}
        node.output.extend(self.fresh(node.op_type) for _ in range(outputs - len(known)))
        self.infer(node)
        self.values |= earlier
        for name in node.output:
            self.producer[name] = node
        self._emitted[_key(node)] = tuple(node.output)
        return tuple(node.output)

    def _place(self, node: onnx.NodeProto, *, foldable: bool = True) -> tuple[str, ...]:
        if foldable and (self._fold(node) or self._fold_vector(node)):
            return tuple(self._alias.get(name, name) for name in node.output)
        if not node.name or node.name in self._names:
            node.name = self.fresh(node.op_type)
        self._names.add(node.name)
        self.nodes.append(node)
        self.track(node)
        for name in node.output:
            self.producer[name] = node
        if node.op_type not in RANDOM:
            self._emitted[_key(node)] = tuple(node.output)
        return tuple(node.output)

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Replace a node of constants by its small result."""
        if node.op_type in RANDOM or node.domain not in ("", "ai.onnx"):
            return False
        arrays = {name: self.constant_value(name) for name in node.input if name}
        if any(array is None for array in arrays.values()):
            return False
        given = sum(array.size for array in arrays.values() if array is not None)
        if not self._small(node, min(max(given, 1024), FOLD_LIMIT)):
            return False
        results = simplify.evaluate(node, arrays, self.opset)
        if results is None:
            return False
        for name, result in zip(node.output, results, strict=True):
            if name:
                self._alias[name] = self.const(result.astype(self.dtype(name), copy=False))
        return True

    def _fold_vector(self, node: onnx.NodeProto) -> bool:
        """Replace a vector of sizes that turn out static by a constant."""
        vector = vectors.vector_of(self, node)
        if vector is None or not all(isinstance(d, int) for d in vector):
            return False
        self._alias[node.output[0]] = self.const(np.array(vector, dtype=np.int64))
        return True

    def _small(self, node: onnx.NodeProto, limit: int) -> bool:
        for name in node.output:
            dims = self.values[name].dims if name else ()
            if dims is None or not all(isinstance(d, int) for d in dims):
                return False
            if int(np.prod([int(d) for d in dims], dtype=np.int64)) > limit:  # type: ignore[arg-type]
                return False
        return True


def _ambiguous(have: Dim, want: Dim) -> bool:
    """Whether it stays open if an axis was broadcast: not for equal, 1, or known-larger sizes."""
    if have is not None and have == want:
        return False
    if want == 1 or have == 1:
        return False
    return not (isinstance(want, int) and want != 1)


def _plain_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in attributes.items()
        if value is not None
    }


def _key(node: onnx.NodeProto) -> bytes:
    """What makes two nodes equal: operator, inputs and attributes, without names."""
    copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=node.input)
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        kept = copy.attribute.add()
        kept.CopyFrom(attribute)
        kept.doc_string = ""
    return bytes(copy.SerializeToString(deterministic=True))
