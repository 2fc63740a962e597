"""Spare checker, converter and inference the large tensors of a model, which they only copy."""

from __future__ import annotations

import onnx
from onnx import helper

HEAVY = 4096
"""Elements above which a tensor is taken out: none that holds sizes, axes or scales is as large."""


def lightened(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """The model with its large tensors turned into inputs: converters need not carry them."""
    heavy = {t.name: t for t in model.graph.initializer if _elements(t) > HEAVY}
    if not heavy:
        return model, {}
    light = onnx.ModelProto()
    light.CopyFrom(_without_initialisers(model))
    light.functions.extend(model.functions)
    light.graph.initializer.extend(t for t in model.graph.initializer if t.name not in heavy)
    present = {i.name for i in light.graph.input}
    light.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in heavy.values()
        if t.name not in present
    )
    return light, heavy


def _without_initialisers(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = onnx.GraphProto(
        name=model.graph.name, node=model.graph.node, input=model.graph.input,
        output=model.graph.output, value_info=model.graph.value_info,
    )  # fmt: skip
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )


def restore(model: onnx.ModelProto, heavy: dict[str, onnx.TensorProto]) -> None:
    """Put the large tensors back."""
    model.graph.initializer.extend(heavy.values())
    inputs = [i for i in model.graph.input if i.name not in heavy]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
