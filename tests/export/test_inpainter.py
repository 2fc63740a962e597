"""Inpainters of the user's own: read, checked, and named as inspection wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from unblemish.errors import ModelError
from unblemish.export.inpainter import check_inpainter, open_inpainter
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.inpainting import OnnxInpainter

ONE = TensorProto.FLOAT


def network(path: Path, **changes: Any) -> Path:
    """A network that fills with a quarter: image + mask * (1/4 - image)."""
    names = changes.get("names", ("image", "mask"))
    shapes = changes.get("shapes", ((1, 3, 12, 16), (1, 1, 12, 16)))
    out = changes.get("out", [1, 3, 12, 16])
    quarter = numpy_helper.from_array(np.array(changes.get("fill", 0.25), np.float32), "quarter")
    nodes = [
        helper.make_node("Sub", ["quarter", names[0]], ["apart"]),
        helper.make_node("Mul", ["apart", names[1]], ["moved"]),
        helper.make_node("Add", [names[0], "moved"], ["whole"]),
        *changes.get("tail", [helper.make_node("Identity", ["whole"], ["y"])]),
    ]
    inputs = [
        helper.make_tensor_value_info(n, changes.get("kind", ONE), s)
        for n, s in zip(names, shapes, strict=True)
    ]
    end = helper.make_tensor_value_info("y", changes.get("kind", ONE), out)
    graph = helper.make_graph(nodes, "g", inputs, [end], [quarter])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def opened(path: Path) -> Path:
    onnx.save(open_inpainter(path), path)
    return path


@pytest.mark.parametrize("names", [("image", "mask"), ("pixel_values", "bool_masked_pos")])
def test_inputs_are_told_apart_by_name_or_by_channels(
    names: tuple[str, str], tmp_path: Path
) -> None:
    model = open_inpainter(network(tmp_path / "mae.onnx", names=names))
    assert [value.name for value in model.graph.input] == ["image", "mask"]
    assert [value.name for value in model.graph.output] == ["restored"]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_named_graph_fills_holes_as_the_network_does(channels: int, tmp_path: Path) -> None:
    shapes = ((1, channels, 12, 16), (1, 1, 12, 16))
    path = opened(network(tmp_path / "mae.onnx", shapes=shapes, out=[1, channels, 12, 16]))
    image = np.random.default_rng(0).random((30, 40, 3), dtype=np.float32)
    hole = np.zeros((30, 40), np.bool_)
    hole[6:24, 8:32] = True
    filled = OnnxInpainter(OrtBackend(1), str(path))(image, hole)
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    np.testing.assert_allclose(filled[12:18, 14:26], 0.25, atol=1e-6)
    check_inpainter(path, "mae.onnx")


def open_sizes(path: Path) -> Path:
    return network(path, shapes=((1, 3, "h", "w"), (1, 1, "h", "w")), out=[1, 3, "h", "w"])


def crossed_names(path: Path) -> Path:
    return network(path, names=("mask", "image"))


def other_mask(path: Path) -> Path:
    return network(path, shapes=((1, 3, 12, 16), (1, 1, 1, 1)))


def one_input(path: Path) -> Path:
    network(path)
    model = onnx.load(path)
    mask = model.graph.input.pop()
    ones = np.ones([d.dim_value for d in mask.type.tensor_type.shape.dim], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ones, "mask"))
    onnx.save(model, path)
    return path


def flat(path: Path) -> Path:
    return network(path, tail=[helper.make_node("Flatten", ["whole"], ["y"])], out=[1, 576])


def damaged(path: Path) -> Path:
    path.write_bytes(b"no model")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [(crossed_names, "'image'"), (open_sizes, "with h and w fixed"),
     (other_mask, "with h and w fixed"), (one_input, r"takes 'image' \(batch"),
     (flat, "no output of four dimensions"), (damaged, "no valid ONNX model")],
)  # fmt: skip
def test_networks_of_another_interface_are_refused(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        open_inpainter(make(tmp_path / "mae.onnx"))


def test_a_network_that_gives_another_size_is_refused(tmp_path: Path) -> None:
    path = network(
        tmp_path / "mae.onnx",
        tail=[helper.make_node("MaxPool", ["whole"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        out=[1, 3, "a", "b"],
    )
    with pytest.raises(ModelError, match=r"mae\.onnx.*(12, 16|6, 8|Nothing was written)"):
        check_inpainter(opened(path), "mae.onnx")


def test_a_network_that_fills_with_nan_is_refused(tmp_path: Path) -> None:
    path = opened(network(tmp_path / "mae.onnx", fill=float("nan")))
    with pytest.raises(ModelError, match=r"mae\.onnx fills holes with NaN"):
        check_inpainter(path, "mae.onnx")
