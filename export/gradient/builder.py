"""The graph under construction: emits nodes for the rules, knows types, folds and shares what it can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from unblemish.errors import ModelError, ShapeError
from unblemish.export.gradient import simplify
from unblemish.export.gradient.types import Dim, Value, from_type, to_type

FOLD_LIMIT = 1 << 16
"""Elements above which a constant result stays a node: the engines fold it, the file stays small."""

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
                    "Bernoulli", "Multinomial"})  # fmt: skip


class GraphBuilder:
    """Implements `RuleContext`; forward nodes are adopted first, rules emit after them.

    Equal nodes are emitted once, nodes of small constants are folded, and nodes that change nothing
    (Cast to the same type, Reshape to the same shape, product with one) are not emitted.
    """

    def __init__(self, opset: int, reserved: Iterable[str]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, Value] = {}
        self.variables: set[str] = set()  # initialisers that are differentiated: never constants
        self.active: set[str] = set()
        self._names = set(reserved)
        self._alias: dict[str, str] = {}
        self._emitted: dict[bytes, tuple[str, ...]] = {}
        self._constants: dict[bytes, str] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._shapes: dict[str, tuple[Dim, ...]] = {}  # elements of vectors of sizes
        self._counter: dict[str, int] = {}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.fresh_values: set[str] = set()  # names that the model does not have

    # -- what the rules use ------------------------------------------------------------------------

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
        self._infer(node)
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

    def dtype(self, name: str) -> np.dtype[Any]:
        """Element type of a value."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self._value(name).elem_type))

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Known dimensions (None where symbolic); None where not even the rank is known."""
        dims = self._value(name).dims
        return None if dims is None else tuple(d if isinstance(d, int) else None for d in dims)

    def rank(self, name: str) -> int:
        """Rank of a value; ModelError where unknown."""
        dims = self._value(name).dims
        if dims is None:
            raise ModelError(
                f"the rank of '{name}' is unknown, and its gradient needs it; give the model's "
                "inputs a shape (symbolic dimensions are fine)"
            )
        return len(dims)

    def shape(self, name: str) -> str:
        """int64 vector of the dimensions: a constant where static, a Shape node otherwise."""
        dims = self._value(name).dims
        if dims is not None and all(isinstance(d, int) for d in dims):
            return self.const(np.array(dims, dtype=np.int64))
        return self.op("Shape", name)

    def constant_value(self, name: str) -> NDArray[Any] | None:
        """The array behind a constant or initialiser that is not differentiated; None otherwise."""
        name = self._alias.get(name, name)
        if name not in self.initialisers or name in self.variables:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.initialisers[name])
        return self._arrays[name]

    def needs(self, name: str | None) -> bool:
        """Whether a gradient with respect to this value is wanted."""
        return bool(name) and name in self.active

    def sum_to(self, cotangent: str, like: str) -> str:
        """Undo broadcasting: sum `cotangent` to the shape of `like` (nothing emitted where equal)."""
        if self.same_shape(cotangent, like):
            return cotangent
        have, want = self._value(cotangent).dims, self._value(like).dims
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

    def same_shape(self, first: str, second: str) -> bool:
        """Whether two values are known to have equal shapes (symbolic dimensions by their names)."""
        a, b = self._value(first).dims, self._value(second).dims
        return a is not None and a == b and None not in a

    def zeros_like(self, name: str) -> str:
        """Zeros of the shape and dtype of a value."""
        zero = np.zeros(1, dtype=self.dtype(name))
        result = self.op("ConstantOfShape", self.shape(name), value=zero)
        self.declare(result, self._value(name).dims)
        return result

    # -- beyond the contract: for the engine, the passes and long rules ----------------------------

    def reduce_sum(self, name: str, axes: Iterable[int], *, keepdims: bool) -> str:
        """Sum over constant axes."""
        vector = self.const(np.array(sorted(axes), dtype=np.int64))
        return self.op("ReduceSum", name, vector, keepdims=int(keepdims))

    def dims(self, name: str) -> tuple[Dim, ...] | None:
        """Dimensions as integers, names of symbolic dimensions, or None where nothing is known."""
        return self._value(name).dims

    def fresh(self, hint: str) -> str:
        """A name that no value or node of the graph has."""
        while True:
            number = self._counter[hint] = self._counter.get(hint, -1) + 1
            name = f"{hint.lower()}_g{number}"
            if name not in self._names:
                self._names.add(name)
                self.fresh_values.add(name)
                return name

    def add_initialiser(self, tensor: onnx.TensorProto) -> None:
        """Add a constant under its own name."""
        self.initialisers[tensor.name] = tensor
        self.values[tensor.name] = Value(tensor.data_type, tuple(tensor.dims))

    def declare(self, name: str, dims: tuple[Dim, ...] | None) -> None:
        """State the dimensions of a value; ShapeError where they contradict what is known."""
        name = self._alias.get(name, name)
        value = self._value(name)
        if dims is None:
            return
        if value.dims is not None:
            if len(value.dims) != len(dims) or any(map(_contradict, value.dims, dims)):
                raise ShapeError(f"'{name}' was expected to have shape {dims}, found {value.dims}")
            dims = tuple(map(_sharper, value.dims, dims))
        self.values[name] = Value(value.elem_type, dims)

    def adopt(self, node: onnx.NodeProto, values: dict[str, Value], pinned: set[str]) -> None:
        """Take over a forward node; equal ones are merged, except where they make graph outputs."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(self._alias.get(name, name) for name in node.input)
        for name in copy.output:
            if name:
                self.values[name] = values.get(name, Value(0, None))
        if any(name and not self._is_static(name) for name in copy.output):
            self._infer_again(copy)
        if not pinned.intersection(copy.output):
            known = self._emitted.get(_key(copy))
            if known is not None and len(known) >= len(copy.output):
                self._alias.update(zip(copy.output, known, strict=False))
                return
        self._place(copy, foldable=not pinned.intersection(copy.output))

    def resolve(self, name: str) -> str:
        """The name under which a forward value lives after merging."""
        return self._alias.get(name, name)

    # -- inside ------------------------------------------------------------------------------------

    def _value(self, name: str) -> Value:
        name = self._alias.get(name, name)
        if name not in self.values:
            raise ModelError(f"the graph has no value '{name}'")
        return self.values[name]

    def _widen(self, known: tuple[str, ...], outputs: int) -> tuple[str, ...]:
        """Ask an emitted node for further outputs."""
        node = self.producer[known[0]]
        earlier = {name: self.values[name] for name in known if name}
        node.output.extend(self.fresh(node.op_type) for _ in range(outputs - len(known)))
        self._infer(node)
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
        self._track_shape(node)
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

    def _is_static(self, name: str) -> bool:
        dims = self.values[name].dims
        return dims is not None and None not in dims

    def _infer_again(self, node: onnx.NodeProto) -> None:
        """Sharpen what is known of a forward node's outputs by the vectors of sizes known here."""
        before = {name: self.values[name] for name in node.output if name}
        try:
            self._infer(node)
        except ModelError:
            self.values |= before
            return
        for name, value in before.items():
            if self.values[name].elem_type == value.elem_type or not value.elem_type:
                self.declare(name, value.dims)
            else:
                self.values[name] = value

    def _fold_vector(self, node: onnx.NodeProto) -> bool:
        """Replace a vector of sizes that turn out static by a constant."""
        vector = simplify.vector_of(self, node)
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

    def _infer(self, node: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        types = {n: to_type(self._value(n)) for n in node.input if n}
        data: dict[str, onnx.TensorProto] = {}
        for name in types:
            array = self.constant_value(name)
            if array is not None and array.size <= 1024:
                data[name] = numpy_helper.from_array(array, name)
        opsets = [helper.make_opsetid("", self.opset)]
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=opsets
            )
        except onnx.shape_inference.InferenceError as cause:
            raise ShapeError(f"a gradient rule emitted a {node.op_type} that is no valid ONNX: "
                             f"{cause}; inputs {[(n, self.values[self.resolve(n)]) for n in types]}"
                             ) from cause  # fmt: skip
        for name in node.output:
            self.values[name] = from_type(inferred[name])
        self._infer_from_vector(node)

    def vector(self, name: str) -> tuple[Dim, ...] | None:
        """Elements of an int64 vector of sizes: integers, names of symbolic ones, None if unknown."""
        name = self._alias.get(name, name)
        if name in self._shapes:
            return self._shapes[name]
        array = self.constant_value(name)
        if array is None or array.ndim != 1 or array.dtype != np.int64 or array.size > 64:
            return None
        return tuple(int(v) for v in array)

    def _infer_from_vector(self, node: onnx.NodeProto) -> None:
        """Dimensions of a value that is shaped by a vector of sizes."""
        position = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
        vector = None if position is None else self.vector(node.input[position])
        if vector is None:
            return
        have = self._value(node.input[0]).dims or ()
        if node.op_type == "Reshape":
            if any(a.name == "allowzero" and a.i for a in node.attribute) and 0 in vector:
                return
            copied = [d if d != 0 or i >= len(have) else have[i] for i, d in enumerate(vector)]
            self.declare(node.output[0], tuple(None if d == -1 else d for d in copied))
        elif node.op_type == "ConstantOfShape" or all(
            h == 1 or h == v for h, v in zip(have[::-1], vector[::-1], strict=False)
        ):
            self.declare(node.output[0], vector)

    def _track_shape(self, node: onnx.NodeProto) -> None:
        """Remember the elements of a vector of sizes."""
        vector = simplify.vector_of(self, node)
        if vector is not None:
            self._shapes[node.output[0]] = vector

    def _sum_dynamic(self, cotangent: str, like: str, extra: int) -> str:
        """Sum over the axes that turn out to be 1 in `like` and more in the cotangent.

        Only where symbolic dimensions leave it open which axes were broadcast.
        """
        want = self.op("Shape", like)
        if extra:
            want = self.op("Concat", self.const(np.ones(extra, dtype=np.int64)), want, axis=0)
        one = self.const(np.array(1, dtype=np.int64))
        stretched = self.op("And", self.op("Equal", want, one),
                            self.op("Not", self.op("Equal", self.op("Shape", cotangent), one)))  # fmt: skip
        axes = self.op("Reshape", self.op("NonZero", stretched), self.const(np.array([-1])))
        summed = self.op("ReduceSum", cotangent, axes, keepdims=1, noop_with_empty_axes=1)
        have = self._value(cotangent).dims
        self.values[summed] = Value(self._value(cotangent).elem_type, (None,) * len(have or ()))
        return summed


def _ambiguous(have: Dim, want: Dim) -> bool:
    """Whether it stays open if an axis was broadcast: not for equal, 1, or known-larger sizes."""
    if have is not None and have == want:
        return False
    if want == 1 or have == 1:
        return False
    return not (isinstance(want, int) and want != 1)


def _contradict(known: Dim, stated: Dim) -> bool:
    return isinstance(known, int) and isinstance(stated, int) and known != stated


def _sharper(known: Dim, stated: Dim) -> Dim:
    """The more telling of two descriptions of one dimension: integer, then the stated name."""
    if isinstance(known, int):
        return known
    return stated if stated is not None else known


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
    return copy.SerializeToString(deterministic=True)
