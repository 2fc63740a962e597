"""A feature extractor from any ONNX file: its layers side by side, as `feature_graph` has them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unblemish.errors import BackendError, ConfigError
from unblemish.export.feature_graph import FEATURES, IMAGE, MEAN, STD, FeatureGraph, radius_of
from unblemish.export.flops import cost
from unblemish.export.onnx_layers import Layers, one_size_only, open_layers
from unblemish.export.onnx_source import BATCH, rename

Array = NDArray[Any]
BACKBONE = "onnx"


def onnx_feature_graph(
    path: Path,
    layers: tuple[str, ...] | None = None,
    *,
    camera: int = 3,
    pool: int = 0,
    select: Sequence[int] | None = None,
    size: int = 224,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> FeatureGraph:
    """Build the extractor of an ONNX network, NCHW, whatever sizes it states; see `feature_graph`.

    Args:
        layers: see `onnx_layers`.
        camera: channels of the images; a grey image counts as three equal channels where the
            network takes three.
        mean, std: the network takes (image - mean) / std of images in [0, 1], for every channel or
            one for all; None for ImageNet's where it takes three channels, and 0 and 1 where one.
    Raises: as `onnx_layers`; ConfigError where the channels do not fit; ModelError where the
        network takes images of one size only; UnsupportedOperatorError where an operator has no
        gradient rule.
    """
    model, found, wanted = open_layers(path, layers, size)
    if camera == 3 and wanted == 1:
        raise ConfigError(
            f"{path} takes grey images and the camera's are in colour. Give --channels 1, or "
            "another network."
        )
    offset = _per_channel("mean", mean, MEAN if wanted == 3 else (0.0,), wanted)
    scale = _per_channel("std", std, STD if wanted == 3 else (1.0,), wanted)
    if not all(scale > 0):
        raise ConfigError(f"std must be positive; found {scale.tolist()}.")
    joined = _joined(model, found, camera, offset, scale, pool, select)
    align = max(found.strides)
    _check_sizes(joined, path, min(found.strides), align)
    return FeatureGraph(
        joined, BACKBONE, found.names, min(found.strides), align,
        _reach(joined, camera, size, align),
        sum(found.channels) if select is None else len(select),
        cost(model).parameters, camera, None,
        () if select is not None else tuple(zip(found.channels, found.strides, strict=True)),
    )  # fmt: skip


def _per_channel(
    name: str, given: Sequence[float] | None, default: Sequence[float], channels: int
) -> NDArray[np.float32]:
    values = np.asarray(default if given is None else given, np.float32)
    if len(values) not in (1, channels) or not np.isfinite(values).all():
        raise ConfigError(
            f"{name} must be one number, or one for each of the network's {channels} channels; "
            f"found {list(given or default)}."
        )
    return np.broadcast_to(values, (channels,)).copy()


def _joined(
    model: onnx.ModelProto,
    layers: Layers,
    camera: int,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    pool: int,
    select: Sequence[int] | None,
) -> onnx.ModelProto:
    """Normalise the image, bring all layers to the finest cells, and stack them, channels last."""
    from unblemish.export.passes import optimise

    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    rename(graph, IMAGE, "unblemish_normal")
    head: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def weight(array: Array) -> str:
        name = f"unblemish_w{len(weights)}"
        weights.append(numpy_helper.from_array(array, name))
        return name

    def op(kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"unblemish_{len(head)}"
        head.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    x, channels = IMAGE, len(mean)
    if camera == 1 and channels == 3:
        x = op("Concat", [x, x, x], axis=1)
    x = op("Sub", [x, weight(mean.reshape(1, -1, 1, 1))])
    head.append(
        helper.make_node("Div", [x, weight(std.reshape(1, -1, 1, 1))], ["unblemish_normal"])
    )
    before = len(head)
    maps = [
        _placed(op, weight, name, stride // layers.strides[0], pool)
        for name, stride in zip(layers.names, layers.strides, strict=True)
    ]
    joined = maps[0] if len(maps) == 1 else op("Concat", maps, axis=1)
    if select is not None:
        joined = op("Gather", [joined, weight(np.array(list(select), np.int64))], axis=1)
    head.append(helper.make_node("Transpose", [joined], [FEATURES], perm=[0, 2, 3, 1]))
    nodes = [*head[:before], *graph.graph.node, *head[before:]]
    count = sum(layers.channels) if select is None else len(select)
    image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [BATCH, camera, "H", "W"])
    features = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [BATCH, "h", "w", count])
    made = helper.make_graph(
        nodes, "features", [image], [features], [*graph.graph.initializer, *weights]
    )
    return optimise(
        helper.make_model(made, opset_imports=graph.opset_import, ir_version=graph.ir_version)
    )


def _placed(
    op: Callable[..., str], weight: Callable[[Array], str], name: str, times: int, pool: int
) -> str:
    if pool:
        half = pool // 2
        name = op(
            "AveragePool", [name], kernel_shape=[pool, pool], pads=[half] * 4, count_include_pad=1
        )
    if times == 1:
        return name
    scales = weight(np.array([1, 1, times, times], np.float32))
    if pool:
        return op("Resize", [name, "", scales], mode="linear",
                  coordinate_transformation_mode="half_pixel")  # fmt: skip
    return op("Resize", [name, "", scales], mode="nearest", nearest_mode="floor",
              coordinate_transformation_mode="asymmetric")  # fmt: skip


def _check_sizes(model: onnx.ModelProto, path: Path, stride: int, align: int) -> None:
    """Run at two sizes. Raises: ModelError where one fails or gives other cells."""
    from unblemish.runtime.backends.onnxruntime import OrtBackend

    camera = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    with tempfile.TemporaryDirectory(prefix="unblemish-") as folder:
        file = Path(folder) / "features.onnx"
        file.write_bytes(model.SerializeToString())
        program = OrtBackend(1).program(str(file))
        for rows, columns in ((4, 4), (7, 5)):
            height, width = rows * align, columns * align
            image = np.zeros((2, camera, height, width), np.float32)
            try:
                shape = np.asarray(program.run({IMAGE: image})[FEATURES]).shape
            except BackendError as error:
                raise one_size_only(path, height, error) from error
            if shape[:3] != (2, height // stride, width // stride):
                raise one_size_only(path, height, f"features of shape {shape}")


def _reach(model: onnx.ModelProto, camera: int, size: int, align: int) -> int:
    """Radius, px, as `radius_of` says, by the graphs that inspection runs."""
    from unblemish.export.detector import detector_graphs
    from unblemish.runtime.backends.onnxruntime import OrtBackend

    graphs = detector_graphs(model)
    rng = np.random.default_rng(0)
    side = max(size // align, 8) * align
    image = rng.random((1, camera, side, side), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="unblemish-") as folder:
        paths = []
        for role in ("features_forward", "features_backward"):
            paths.append(str(Path(folder) / f"{role}.onnx"))
            Path(paths[-1]).write_bytes(graphs[role].SerializeToString())
        pair = OrtBackend(1).pair(*paths)
        features = np.zeros_like(pair.forward({IMAGE: image})[FEATURES])
        row, column = features.shape[1] // 2, features.shape[2] // 2
        features[0, row, column] = rng.standard_normal(features.shape[3])
        gradient = np.array(pair.backward({FEATURES: features})[IMAGE])
    return radius_of(gradient[0], row, column, side // features.shape[1])
