"""What is known of the values of a graph: types, dimensions, constants, vectors of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from unblemish.errors import ModelError, ShapeError
from unblemish.export.gradient import sizes, vectors
from unblemish.export.gradient.types import Dim, Value, from_type, to_type

_MADE_UP = "unk__"  # how ONNX's inference names dimensions that it cannot work out


class ValueTable:
    """Types and dimensions by name; infers those of new nodes.

    Sizes are followed through vectors of sizes (Shape, Slice, Gather, Concat), which ONNX's own
    inference does not do for single nodes.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, Value] = {}
        self.variables: set[str] = set()  # initialisers that are differentiated: never constants
        self._alias: dict[str, str] = {}  # merged values by the names they had
        self._arrays: dict[str, NDArray[Any]] = {}
        self._vectors: dict[str, tuple[Dim, ...]] = {}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Element type of a value."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.value(name).elem_type))

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Known dimensions (None where symbolic); None where not even the rank is known."""
        dims = self.value(name).dims
        return None if dims is None else tuple(d if isinstance(d, int) else None for d in dims)

    def dims(self, name: str) -> tuple[Dim, ...] | None:
        """Dimensions as integers, names of symbolic dimensions, or None where nothing is known."""
        return self.value(name).dims

    def rank(self, name: str) -> int:
        """Rank of a value; ModelError where unknown."""
        dims = self.value(name).dims
        if dims is None:
            raise ModelError(
                f"the rank of '{name}' is unknown, and its gradient needs it; give the model's "
                "inputs a shape (symbolic dimensions are fine)"
            )
        return len(dims)

    def constant_value(self, name: str) -> NDArray[Any] | None:
        """The array behind a constant or initialiser that is not differentiated; None otherwise."""
        name = self._alias.get(name, name)
        if name not in self.initialisers or name in self.variables:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.initialisers[name])
        return self._arrays[name]

    def same_shape(self, first: str, second: str) -> bool:
        """Whether two values are known to have equal shapes (symbolic ones by their names)."""
        a, b = self.value(first).dims, self.value(second).dims
        return a is not None and a == b and None not in a

    def vector(self, name: str) -> tuple[Dim, ...] | None:
        """Elements of a vector of sizes: integers, names of symbolic ones; None if unknown."""
        name = self._alias.get(name, name)
        if name in self._vectors:
            return self._vectors[name]
        array = self.constant_value(name)
        if array is None or array.ndim != 1 or array.dtype != np.int64 or array.size > 64:
            return None
        return tuple(int(v) for v in array)

    def resolve(self, name: str) -> str:
        """The name under which a forward value lives after merging."""
        return self._alias.get(name, name)

    def add_initialiser(self, tensor: onnx.TensorProto) -> None:
        """Add a constant under its own name."""
        self.initialisers[tensor.name] = tensor
        self.values[tensor.name] = Value(tensor.data_type, tuple(tensor.dims))

    def declare(self, name: str, dims: tuple[Dim, ...] | None) -> None:
        """State the dimensions of a value; ShapeError where they contradict what is known."""
        name = self._alias.get(name, name)
        value = self.value(name)
        if dims is None:
            return
        if value.dims is not None:
            if len(value.dims) != len(dims) or any(map(_contradict, value.dims, dims)):
                raise ShapeError(f"'{name}' was expected to have shape {dims}, found {value.dims}")
            dims = tuple(map(_sharper, value.dims, dims))
        self.values[name] = Value(value.elem_type, dims)

    def value(self, name: str) -> Value:
        name = self._alias.get(name, name)
        if name not in self.values:
            raise ModelError(f"the graph has no value '{name}'")
        return self.values[name]

    def is_static(self, name: str) -> bool:
        dims = self.values[name].dims
        return dims is not None and not any(d is None or _made_up(d) for d in dims)

    def infer(self, node: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        types = {n: to_type(self.value(n)) for n in node.input if n}
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
        self._infer_multiples(node)
        self._infer_from_vector(node)

    def infer_again(self, node: onnx.NodeProto) -> None:
        """Sharpen what is known of a forward node's outputs by the vectors of sizes known here."""
        before = {name: self.values[name] for name in node.output if name}
        try:
            self.infer(node)
        except ModelError:
            self.values |= before
            return
        for name, value in before.items():
            if self.values[name].elem_type == value.elem_type or not value.elem_type:
                self.declare(name, value.dims)
            else:
                self.values[name] = value

    def _infer_multiples(self, node: onnx.NodeProto) -> None:
        """Symbolic spatial sizes behind windows and Resize, see `sizes`."""
        dims = self.value(node.input[0]).dims if node.input else None
        if dims is None or not any(isinstance(d, str) for d in dims[2:]):
            return
        given = [*node.input, "", "", ""]
        kernel = self.value(given[1]).dims if node.op_type in ("Conv", "ConvTranspose") else None
        scales = self.constant_value(given[2]) if node.op_type == "Resize" else None
        found = sizes.sizes_behind(
            node, dims, (kernel or ())[2:], None if scales is None else scales.tolist()
        )
        have = self.value(node.output[0]).dims
        if found is None or have is None:
            return
        # What inference found already, it found with numbers.
        joined = [h if isinstance(h, int) else f for h, f in zip(have[2:], found, strict=True)]
        self.declare(node.output[0], (*have[:2], *joined))

    def _infer_from_vector(self, node: onnx.NodeProto) -> None:
        """Dimensions of a value that is shaped by a vector of sizes."""
        position = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
        vector = None if position is None else self.vector(node.input[position])
        if vector is None:
            return
        have = self.value(node.input[0]).dims or ()
        if node.op_type == "Reshape":
            if any(a.name == "allowzero" and a.i for a in node.attribute) and 0 in vector:
                return
            copied = [d if d != 0 or i >= len(have) else have[i] for i, d in enumerate(vector)]
            self.declare(node.output[0], tuple(None if d == -1 else d for d in copied))
        elif node.op_type == "ConstantOfShape" or all(
            h == 1 or h == v for h, v in zip(have[::-1], vector[::-1], strict=False)
        ):
            self.declare(node.output[0], vector)

    def track(self, node: onnx.NodeProto) -> None:
        """Remember the elements of a vector of sizes."""
        vector = vectors.vector_of(self, node)
        if vector is not None:
            self._vectors[node.output[0]] = vector


def _contradict(known: Dim, stated: Dim) -> bool:
    return isinstance(known, int) and isinstance(stated, int) and known != stated


def _sharper(known: Dim, stated: Dim) -> Dim:
    """The more telling of two descriptions of one dimension: integer, then the stated name.

    Names that inference made up for what it does not know come last.
    """
    if isinstance(known, int):
        return known
    return known if stated is None or (_made_up(stated) and known is not None) else stated


def _made_up(dim: Dim) -> bool:
    return isinstance(dim, str) and dim.startswith(_MADE_UP)
