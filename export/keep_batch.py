"""Let every Reshape say that it keeps the batch, so that shapes stay known behind it.

A target of (-1, C, H, W) is of unknown batch to shape inference; of two branches that meet again
nobody then knows that they have equal batches, and a gradient has to ask at run time.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper


def keep_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn Reshape targets (-1, ...) and (1, ...) to (0, ...) where that holds; returns a copy.

    It holds where the input's first dimension is symbolic, and the others are static and as many
    elements as the target's others: then 0, 'as the input has it', is what comes out.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    # One Reshape at a time: the shape behind it decides about the next.
    while node := _first(result, tensors):
        target = numpy_helper.to_array(tensors[node.input[1]]).copy()
        target[0] = 0
        kept = numpy_helper.from_array(target, f"{node.output[0]}_shape_kept")
        result.graph.initializer.append(kept)
        tensors[kept.name] = kept
        node.input[1] = kept.name
        for attribute in [a for a in node.attribute if a.name == "allowzero"]:
            node.attribute.remove(attribute)  # it would make 0 mean an empty dimension
    return result


def _first(model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto]) -> onnx.NodeProto | None:
    shapes = _symbolic_shapes(model)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in tensors:
            continue
        target = numpy_helper.to_array(tensors[node.input[1]])
        shape = shapes.get(node.input[0])
        if shape is None or not len(target) or target[0] not in (-1, 1) or np.any(target[1:] < 1):
            continue
        if not isinstance(shape[0], int) and all(isinstance(d, int) for d in shape[1:]):
            rest = math.prod(d for d in shape[1:] if isinstance(d, int))
            if rest == math.prod(target[1:].tolist()):
                found: onnx.NodeProto = node
                return found
    return None


def _symbolic_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(probe, data_prop=True).graph
    shapes: dict[str, list[int | str]] = {}
    for value in (*graph.input, *graph.value_info):
        kind = value.type.tensor_type
        if kind.HasField("shape") and kind.shape.dim:
            shapes[value.name] = [
                d.dim_value if d.WhichOneof("value") == "dim_value" else d.dim_param
                for d in kind.shape.dim
            ]
    return shapes
