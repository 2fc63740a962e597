"""Any ONNX feature extractor as a perceptual loss: image in, feature maps out."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from unblemish.errors import ModelError
from unblemish.export.keep_batch import keep_batch
from unblemish.export.onnx_layers import check_names
from unblemish.export.onnx_source import BATCH, open_model, rename
from unblemish.export.source import IMAGE, Source


def open_features(path: Path, source: Source, layer: str | None = None) -> onnx.ModelProto:
    """Read a feature extractor and fit it to a generator's images.

    It gets images as the generator makes them, in the generator's range of intensities; a
    normalisation of its own belongs into the graph. Every output counts as a feature map.

    Args:
        layer: an output or inner tensor that counts in their place.
    Returns: 'image' (batch, C, H, W) -> its outputs, with a symbolic batch.
    Raises: ModelError where the file is damaged, or its input is not one float32 image of the
        generator's size; ConfigError where it has no such layer.
    """
    model = open_model(path)
    if layer is not None:
        check_names(model, (layer,), path)
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(layer, TensorProto.FLOAT, None))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    picture = (source.channels, source.height, source.width)
    if len(inputs) != 1 or not _takes(inputs[0], picture):
        found = ", ".join(f"{v.name} {_shape(v)}" for v in inputs) or "none"
        raise ModelError(
            f"{path} must have one input, float32 images (batch, "
            f"{', '.join(map(str, picture))}) as the generator makes them; its inputs are: {found}."
        )
    rename(model, inputs[0].name, IMAGE)
    dims = inputs[0].type.tensor_type.shape
    del dims.dim[:]
    dims.dim.add().dim_param = BATCH
    for size in picture:
        dims.dim.add().dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")  # it may state the old batch and size
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(keep_batch(model))


def _takes(value: onnx.ValueInfoProto, picture: tuple[int, int, int]) -> bool:
    """Whether an input accepts images (batch, *picture); symbolic dimensions fit anything."""
    dims = value.type.tensor_type.shape.dim
    return (
        value.type.tensor_type.elem_type == TensorProto.FLOAT
        and len(dims) == 4
        and all(not d.dim_value or d.dim_value == n for d, n in zip(dims[1:], picture, strict=True))
    )


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]
