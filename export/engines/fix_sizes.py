"""Graphs of one size, for an engine that needs to know it: shapes become constants and fold away.

A gradient of images of any size asks for shapes at run time and hands some over from the forward
graph to its way back; TensorRT wants most of them when it builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from unblemish.errors import ModelError
from unblemish.export.passes import DEFAULT_PASSES, optimise
from unblemish.export.passes.drop_dead_nodes import drop_dead_nodes
from unblemish.export.passes.fold_constants import fold_constants
from unblemish.export.passes.graph_view import GraphView

Sizes = Mapping[str, int]
# Folded, eight bits of a weight would become 32 again.
_fold = partial(fold_constants, keep=frozenset({"QuantizeLinear", "DequantizeLinear"}))
_PASSES = tuple(_fold if rewrite is fold_constants else rewrite for rewrite in DEFAULT_PASSES)


def symbols(model: ModelProto) -> set[str]:
    """Symbolic dimensions of a graph's inputs."""
    return {
        dim.dim_param
        for value in model.graph.input
        for dim in value.type.tensor_type.shape.dim
        if dim.WhichOneof("value") != "dim_value"
    }


def fix_sizes(model: ModelProto, sizes: Sizes) -> ModelProto:
    """One graph with its symbolic dimensions replaced by `sizes`, folded.

    Raises: ModelError where a symbol of an input is not among `sizes`.
    """
    return _folded(_with_inputs(model, _input_shapes(model, sizes)))


def fix_pair(
    forward: ModelProto, backward: ModelProto, sizes: Sizes
) -> tuple[ModelProto, ModelProto]:
    """A forward graph and its way back of one size.

    What the forward graph would hand over that is constant now (shapes and comparisons of shapes)
    becomes a constant of the way back, and is no longer handed over.

    Args:
        sizes: length of every symbolic dimension of the forward graph's inputs.
    Raises: ModelError as `fix_sizes`, or where a kept tensor's shape cannot be told.
    """
    wanted = {value.name for value in backward.graph.input}
    fixed = _with_inputs(forward, _input_shapes(forward, sizes))
    known = _constant_outputs(fixed, {v.name for v in fixed.graph.output} & wanted)
    fixed = _folded(_without_outputs(fixed, known))
    shapes = _shapes_of(fixed)
    return fixed, _folded(_with_inputs(_with_constants(backward, known), shapes))


def _input_shapes(model: ModelProto, sizes: Sizes) -> dict[str, list[int]]:
    missing = symbols(model) - set(sizes)
    if missing:
        raise ModelError(
            f"the graph has inputs of unknown size {', '.join(sorted(missing))}; an engine is "
            "built for known sizes. Export the model with named dimensions."
        )
    return {
        value.name: [
            d.dim_value if d.WhichOneof("value") == "dim_value" else sizes[d.dim_param]
            for d in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
    }


def _with_inputs(model: ModelProto, shapes: Mapping[str, list[int]]) -> ModelProto:
    """A copy with these input shapes, and without what was known of other shapes."""
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for value in result.graph.input:
        name = value.name.removeprefix("ct_") if value.name not in shapes else value.name
        if name not in shapes:
            raise ModelError(f"the size of input '{value.name}' is not known. Export it again.")
        for dim, length in zip(value.type.tensor_type.shape.dim, shapes[name], strict=True):
            dim.dim_value = length
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    return _inferred(result)


def _inferred(model: ModelProto) -> ModelProto:
    """The model with the shapes of its outputs."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {value.name: value for value in inferred.output}
    for value in model.graph.output:
        value.CopyFrom(found[value.name])
    return model


def _constant_outputs(model: ModelProto, names: set[str]) -> dict[str, NDArray[Any]]:
    """Those outputs that no longer depend on any input."""
    probe = ModelProto()
    probe.CopyFrom(model)
    inner = [value for value in probe.graph.output if value.name in names]
    rest = [value for value in probe.graph.output if value.name not in names]
    for value in inner:  # behind an identity, so that folding may replace the value itself
        probe.graph.node.append(
            onnx.helper.make_node("Identity", [value.name], [f"{value.name}__probe"])
        )
    del probe.graph.output[:]
    probe.graph.output.extend(rest)
    probe.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(f"{value.name}__probe") for value in inner
    )
    view = GraphView(_settled(probe))
    constants = {name: view.constant(f"{name}__probe") for name in names}
    constants |= {n: view.constant(n) for n in names if constants[n] is None}
    return {name: np.asarray(value) for name, value in constants.items() if value is not None}


def _settled(model: ModelProto) -> ModelProto:
    """Fold until nothing folds any more: a constant tells the shape behind the next node."""
    for _ in range(64):
        result = _fold(model)
        model = result.model
        if not result.changed:
            break
    return model


def _without_outputs(model: ModelProto, names: Mapping[str, Any]) -> ModelProto:
    kept = [value for value in model.graph.output if value.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return drop_dead_nodes(model).model


def _with_constants(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    kept = [value for value in result.graph.input if value.name not in values]
    fed = [value.name for value in result.graph.input if value.name in values]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    result.graph.initializer.extend(numpy_helper.from_array(values[n], n) for n in fed)
    return result


def _folded(model: ModelProto) -> ModelProto:
    return _inferred(optimise(_settled(model), _PASSES))


def _shapes_of(model: ModelProto) -> dict[str, list[int]]:
    """Shapes of a fixed graph's inputs and outputs."""
    return {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
