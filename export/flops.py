"""Arithmetic and memory of a graph for a batch of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

Shape = tuple[int, ...]

_FREE = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Constant", "Transpose",
     "Concat", "Split", "Slice", "Gather", "Expand", "Pad", "Cast", "Tile", "Size",
     "ConstantOfShape"}
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """`flops`: multiplications and additions, counted separately; `parameters`: weights held."""

    flops: int
    parameters: int


def cost(model: onnx.ModelProto) -> Cost:
    """Count the operations of a graph at batch 1.

    Convolutions and matrix products count 2 per multiply-add; every other computing operator counts
    1 per element of its largest tensor; moving data counts nothing. Tensors whose shape inference
    fails count nothing.
    """
    shapes = value_shapes(model)
    total = sum(_node_flops(node, shapes) for node in model.graph.node)
    parameters = sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    )
    return Cost(total, parameters)


def value_shapes(model: onnx.ModelProto, batch: int = 1) -> dict[str, Shape]:
    """Shape of every value whose shape is static once symbolic dimensions are `batch`."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for value in (*probe.graph.input, *probe.graph.output, *probe.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.WhichOneof("value") != "dim_value":
                dimension.dim_value = batch
    del probe.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(probe, data_prop=True)
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    graph = inferred.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    missing = [n for node in graph.node for n in node.output if n and n not in shapes]
    return shapes | _shapes_of_a_run(probe, missing, shapes) if missing else shapes


def _shapes_of_a_run(
    model: onnx.ModelProto, names: Sequence[str], shapes: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Shapes that inference cannot tell (they hang on values), read off one run on zeros.

    Nothing where the model does not run: its weights lie elsewhere, or an input's shape is open.
    """
    import onnxruntime

    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    if any(value.name not in shapes for value in inputs):
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = {
        value.name: np.zeros(
            shapes[value.name],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in inputs
    }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found = session.run(list(names), feeds)
    except Exception:  # the engine's exceptions share no base; without a run nothing is counted
        return {}
    return {name: tuple(value.shape) for name, value in zip(names, found, strict=True)}


def _node_flops(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    if node.op_type in _FREE:
        return 0
    inputs = [shapes.get(name, ()) for name in node.input]
    outputs = [shapes.get(name, ()) for name in node.output]
    if node.op_type == "Conv":
        return _products(outputs[0], inputs[1])
    if node.op_type == "ConvTranspose":
        return _products(inputs[0], inputs[1])
    if node.op_type in ("MatMul", "Gemm"):
        return _matrix(node, inputs, outputs[0])
    return max((math.prod(shape) for shape in (*inputs, *outputs) if shape), default=0)


def _products(positions: Shape, weight: Shape) -> int:
    """Every weight meets every pixel (of the output, or of a transposed convolution's input)."""
    if len(positions) < 3 or not weight:
        return 0
    pixels = positions[0] * math.prod(positions[2:])
    return 2 * pixels * math.prod(weight)


def _matrix(node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> int:
    if not inputs[0] or not output:
        return 0
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    inner = inputs[0][0 if transposed else -1]
    return 2 * math.prod(output) * inner


def kept_bytes(model: onnx.ModelProto, names: Sequence[str]) -> int:
    """Memory of the named values at batch 1, bytes."""
    shapes = value_shapes(model)
    types = {
        v.name: v.type.tensor_type.elem_type for v in (*model.graph.output, *model.graph.input)
    }
    total = 0
    for name in names:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types.get(name, onnx.TensorProto.FLOAT))
        total += math.prod(shapes.get(name, (0,))) * np.dtype(dtype).itemsize
    return total
