"""Any ONNX generator, as it is: find the latent and the image, and free the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unblemish.errors import ConfigError, ModelError
from unblemish.export.flops import cost, value_shapes
from unblemish.export.keep_batch import keep_batch
from unblemish.export.options import ExportOptions
from unblemish.export.source import IMAGE, LATENT, Original, Source

BATCH = "batch"
RANGES = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0)}


def open_onnx(path: Path, options: ExportOptions) -> Source:
    """Read a generator with one float input, the latent, and one image output (NCHW).

    Raises: ModelError where the file is damaged or its inputs and outputs do not fit; ConfigError
    where the range of intensities must be stated.
    """
    model = open_model(path)
    content = model.SerializeToString()  # not the file, whose weights may be in another one
    latent_input = _latent_input(model, options, path)
    output = image_output(model, options, path)
    original = Original(
        content,
        latent_input.name,
        output.name,
        tuple(d.dim_value for d in list(latent_input.type.tensor_type.shape.dim)[1:]),
    )
    low, high = options.value_range or range_of(model, output.name, path)
    model = _with_flat_latent(model, latent_input, path)
    latent = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rename(model, output.name, IMAGE)
    shape = value_shapes(model).get(IMAGE, ())
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ModelError(
            f"{path}: output '{output.name}' has shape {shape or 'unknown'}, expected "
            "(batch, 1 or 3, height, width). Name the image with --image-output, or add the "
            "missing shape information."
        )
    for index in (0, 2, 3):
        dimension = model.graph.output[0].type.tensor_type.shape.dim[index]
        dimension.Clear()
        if index:
            dimension.dim_value = shape[index]
        else:
            dimension.dim_param = BATCH
    del model.graph.value_info[:]  # they may state the old batch
    model = keep_batch(model)
    return Source(
        "onnx", model, latent, shape[1], shape[2], shape[3], low, high,
        cost(model).parameters, model, original=original,
    )  # fmt: skip


def open_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file. Raises: ModelError where it is none, or damaged."""
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and file errors share no base
        raise ModelError(
            f"{path} is no valid ONNX model: {str(error).strip()[:200]}. Export or copy it again."
        ) from error
    return model


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _latent_input(
    model: onnx.ModelProto, options: ExportOptions, path: Path
) -> onnx.ValueInfoProto:
    inputs = _inputs(model)
    names = ", ".join(value.name for value in inputs) or "none"
    if options.latent_input is not None:
        inputs = [value for value in inputs if value.name == options.latent_input]
        if not inputs:
            raise ConfigError(
                f"{path} has no input '{options.latent_input}'; its inputs are: {names}."
            )
    floats = [v for v in inputs if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    if len(floats) != 1 or len(_inputs(model)) != 1:
        raise ModelError(
            f"{path} must have exactly one input, the latent, float32; its inputs are: {names}. "
            "Make the others constant before export."
        )
    found: onnx.ValueInfoProto = floats[0]
    return found


def image_output(model: onnx.ModelProto, options: ExportOptions, path: Path) -> onnx.ValueInfoProto:
    """The one output, or that of --image-output; the others are taken from the model.

    Raises: ConfigError where it must be named.
    """
    outputs = list(model.graph.output)
    names = ", ".join(value.name for value in outputs)
    if options.image_output is not None:
        outputs = [value for value in outputs if value.name == options.image_output]
        if not outputs:
            raise ConfigError(
                f"{path} has no output '{options.image_output}'; its outputs are: {names}."
            )
    if len(outputs) != 1:
        raise ConfigError(f"{path} has the outputs {names}. Name the image with --image-output.")
    del model.graph.output[:]
    model.graph.output.append(outputs[0])
    kept: onnx.ValueInfoProto = model.graph.output[0]
    return kept


def range_of(model: onnx.ModelProto, output: str, path: Path) -> tuple[float, float]:
    """Intensities of black and white by the last operator. Raises: ConfigError where unknown."""
    maker = {name: node for node in model.graph.node for name in node.output}
    node = maker.get(output)
    while node is not None and node.op_type in ("Identity", "Reshape", "Transpose", "Cast"):
        node = maker.get(node.input[0])
    if node is None or node.op_type not in RANGES:
        raise ConfigError(
            f"{path}: the intensities of black and white cannot be read off the model. "
            "State them, for example --range=-1,1."
        )
    return RANGES[node.op_type]


def _with_flat_latent(
    model: onnx.ModelProto, latent: onnx.ValueInfoProto, path: Path
) -> onnx.ModelProto:
    """Make the input 'z', (batch, d); reshape inside where the model wants (batch, d, 1, 1)."""
    dims = latent.type.tensor_type.shape.dim
    rest = [d.dim_value for d in list(dims)[1:]]
    if len(dims) < 2 or not all(rest):
        raise ModelError(
            f"{path}: input '{latent.name}' must be (batch, length) or (batch, length, 1, 1) with "
            f"a fixed length; found {[d.dim_value or d.dim_param for d in dims]}."
        )
    old, size = latent.name, math.prod(rest)
    flat = helper.make_tensor_value_info(LATENT, TensorProto.FLOAT, [BATCH, size])
    if len(rest) == 1:
        rename(model, old, LATENT)
    else:
        rename(model, LATENT, f"{LATENT}_inner")
        old = latent.name  # itself renamed where it was called so
        target = numpy_helper.from_array(np.array([-1, *rest], np.int64), "unblemish_latent_shape")
        model.graph.initializer.append(target)
        node = helper.make_node("Reshape", [LATENT, target.name], [old], "unblemish_latent")
        model.graph.node.insert(0, node)
    kept = [v for v in model.graph.input if v.name not in (old, LATENT)]
    del model.graph.input[:]
    model.graph.input.extend([flat, *kept])
    return model


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename a value everywhere; a value that has the new name already steps aside first."""
    if old == new:
        return
    everything = {name for node in model.graph.node for name in (*node.input, *node.output)}
    if new in everything:
        rename(model, new, f"{new}_inner")
    for node in model.graph.node:
        _replace(node.input, old, new)
        _replace(node.output, old, new)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.name == old:
            value.name = new
    for tensor in model.graph.initializer:
        if tensor.name == old:
            tensor.name = new


def _replace(names: Sequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new  # type: ignore[index]
