"""The layers of any ONNX network: named outputs or inner tensors, and their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from unblemish.errors import ConfigError, ModelError
from unblemish.export.feature_graph import IMAGE
from unblemish.export.flops import value_shapes
from unblemish.export.gradient.normalise import convert, default_opset
from unblemish.export.keep_batch import keep_batch
from unblemish.export.onnx_source import BATCH, open_model, rename

_LISTED = 12  # names of inner tensors in an error


@dataclass(frozen=True)
class Layers:
    """Layers of a network, finest first.

    Args:
        channels, strides: of each; a stride is model pixels per cell.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]


def onnx_layers(path: Path, layers: tuple[str, ...] | None = None, size: int = 224) -> Layers:
    """What the named layers are at images of `size` pixels a side.

    Args:
        layers: outputs or inner tensors by name; None for all outputs of four dimensions.
    Raises: ModelError where the file is damaged, or its input is no image; ConfigError where a
        layer is missing or no feature map, or the size does not suit them.
    """
    return open_layers(path, layers, size)[1]


def open_layers(
    path: Path, layers: tuple[str, ...] | None, size: int
) -> tuple[onnx.ModelProto, Layers, int]:
    """The network up to its layers, of any batch and size; the layers; channels of its input.

    Raises: see `onnx_layers`.
    """
    from unblemish.export.passes import optimise

    model = open_model(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model, convert_version=True)
    model = convert(model, default_opset(model))
    source, wanted = _image_input(model, path)
    names = layers or tuple(v.name for v in model.graph.output if _may_be_map(v))
    if not names:
        raise ConfigError(
            f"{path} has no output of four dimensions (batch, channels, height, width). Name inner "
            f"tensors with --layers; there are {_inner(model)}."
        )
    check_names(model, names, path)
    rename(model, source, IMAGE)
    names = tuple(IMAGE if name == source else name for name in names)
    model = optimise(_cut(model, names, wanted))
    shapes = _shapes(model, names, wanted, size, path)
    strides = [_stride(name, shapes[name], size, path) for name in names]
    order = sorted(range(len(names)), key=strides.__getitem__)
    found = Layers(
        tuple(names[i] for i in order),
        tuple(shapes[names[i]][1] for i in order),
        tuple(strides[i] for i in order),
    )
    if size % max(strides) or any(s % found.strides[0] for s in strides):
        raise ConfigError(
            f"{path}: cells of {', '.join(map(str, found.strides))} px do not fit each other, or "
            f"not {size}. Choose --size a multiple of the coarsest, or other --layers."
        )
    return _cut(model, found.names, wanted), found, wanted


def _image_input(model: onnx.ModelProto, path: Path) -> tuple[str, int]:
    """Name and channels of the one input. Raises: ModelError where it is no image."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    stated = "; ".join(f"'{v.name}' {_text(v)}" for v in inputs) or "none"
    if len(inputs) == 1:
        kind = inputs[0].type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT and len(dims) == 4 and dims[1] in (1, 3):
            return inputs[0].name, dims[1]
    raise ModelError(
        f"{path} must have one input, float32 images (batch, 1 or 3, height, width) with a stated "
        f"number of channels; its inputs are: {stated}. Export the network again so."
    )


def _may_be_map(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return len(kind.shape.dim) == 4 or not kind.HasField("shape")


def _text(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = ", ".join(str(d.dim_value or d.dim_param or "?") for d in kind.shape.dim)
    return f"{helper.tensor_dtype_to_np_dtype(kind.elem_type)} ({dims})"


def check_names(model: onnx.ModelProto, names: Sequence[str], path: Path) -> None:
    """Raises: ConfigError where a layer is no tensor that the network makes, or named twice."""
    made = {name for node in model.graph.node for name in node.output if name}
    unknown = [name for name in names if name not in made]
    if unknown:
        outputs = ", ".join(value.name for value in model.graph.output)
        raise ConfigError(
            f"{path} has no tensor '{unknown[0]}'. Its outputs are {outputs}; inner tensors of "
            f"four dimensions are {_inner(model)}."
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"layers must be named once each; found {', '.join(names)}.")


def _inner(model: onnx.ModelProto) -> str:
    """Names of feature maps inside, for people: those behind activations where there are any."""
    probe = onnx.shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*probe.value_info, *probe.output)}
    nodes = [n for n in model.graph.node if ranks.get(n.output[0]) == 4]
    names = [n.output[0] for n in nodes if n.op_type not in ("Conv", "BatchNormalization")]
    names = names or [n.output[0] for n in nodes]
    shown = names if len(names) <= _LISTED else [*names[: _LISTED - 2], "...", names[-1]]
    return ", ".join(shown) or "none known"


def _cut(model: onnx.ModelProto, names: Sequence[str], channels: int) -> onnx.ModelProto:
    """A copy that ends at the named tensors and states no sizes."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.value_info[:], cut.graph.output[:]
    image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [BATCH, channels, "H", "W"])
    weights = {tensor.name for tensor in cut.graph.initializer}
    kept = [value for value in cut.graph.input if value.name in weights]
    del cut.graph.input[:]
    cut.graph.input.extend([image, *kept])
    cut.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    return keep_batch(cut)


def _shapes(
    model: onnx.ModelProto, names: Sequence[str], channels: int, size: int, path: Path
) -> Mapping[str, tuple[int, ...]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for dim, side in zip(
        probe.graph.input[0].type.tensor_type.shape.dim, (1, channels, size, size), strict=True
    ):
        dim.dim_value = side
    try:
        shapes = value_shapes(probe)
    except Exception as error:  # shape inference, the engine and their bindings
        raise one_size_only(path, size, error) from error
    lost = [name for name in names if name not in shapes]
    if lost:
        raise one_size_only(path, size, f"the shape of '{lost[0]}' is unknown")
    return shapes


def _stride(name: str, shape: tuple[int, ...], size: int, path: Path) -> int:
    if len(shape) != 4:
        raise ConfigError(
            f"{path}: '{name}' is {shape}, and features are (batch, channels, height, width). Name "
            "a tensor in front of the pooling or flattening."
        )
    height, width = shape[2:]
    if height < 1 or height != width or size % height:
        raise ConfigError(
            f"{path}: '{name}' has {height} x {width} cells at {size} x {size} px, which is no "
            "whole number of pixels a cell. Choose another --size, or a network that pads its "
            "convolutions."
        )
    return size // height


def one_size_only(path: Path, size: int, why: object) -> ModelError:
    """The error for a network that takes images of one size."""
    reason = str(why).strip().splitlines()[0][:200]
    return ModelError(
        f"{path} does not run on images of {size} x {size} px ({reason}). The search looks at "
        "crops of an image: export the network without sizes as constants, with open height and "
        "width."
    )
