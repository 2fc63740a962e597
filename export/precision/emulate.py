"""Make a typed half graph computable where no kernels of its type exist, with the same rounding."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from unblemish.export.passes.graph_view import GraphView
from unblemish.export.passes.result import PassResult
from unblemish.export.precision.elements import widened


def emulate(model: ModelProto, element: int) -> PassResult:
    """Compute every operator in float32, and round its result to the half type.

    That is what tensor cores do: products of half operands, added in float32, rounded once. Engines
    without kernels of a type refuse it (bfloat16 in ONNX Runtime on the CPU) or leave out roundings
    between operators (float16 there), so neither shows the error of the hardware.

    Requires: a graph of `halve`, without half types inside subgraphs.
    Ensures: float32 inputs and outputs, also where the graph's were half.
    """
    view = GraphView(model)
    made = (name for node in view.nodes for name in node.output)
    half = {name for name in made if view.element_type(name) == element}
    for value in (*view.graph.input, *view.graph.output):
        if value.type.tensor_type.elem_type == element:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in view.graph.initializer:
        if tensor.data_type == element:
            content = np.frombuffer(tensor.raw_data, "<u2").reshape(tensor.dims)
            wide = widened(np.array(content, np.uint16), element)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for node in view.nodes:
        casts = [name for name in node.output if name in half]
        if node.op_type == "Cast" and casts:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half:
                raw, short = view.fresh(f"{name}_raw"), view.fresh(f"{name}_short")
                node.output[i] = raw
                nodes.append(view.node("Cast", [raw], [short], to=element))
                nodes.append(view.node("Cast", [short], [name], to=TensorProto.FLOAT))
    view.nodes = nodes
    return view.result(len(half))
