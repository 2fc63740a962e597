"""Extractors from ONNX files against the same network written in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from unblemish.errors import ConfigError, ModelError, UnsupportedOperatorError
from unblemish.export.detector import detector_graphs, graph_in_torch
from unblemish.export.feature_graph import MEAN, STD
from unblemish.export.onnx_features import onnx_feature_graph
from unblemish.export.onnx_layers import onnx_layers
from unblemish.runtime.backends.onnxruntime import OrtBackend

ONE = TensorProto.FLOAT
WIDTHS = (4, 6)
# float32 sums of some hundred products.
CLOSE = 1e-5
Sizes = tuple[int | str, int | str]


def weights(channels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w1": (WIDTHS[0], channels, 5, 5), "b1": (WIDTHS[0],),
              "w2": (WIDTHS[1], WIDTHS[0], 3, 3), "w3": (WIDTHS[1], 10)}  # fmt: skip
    return {n: (rng.standard_normal(s) / 4).astype(np.float32) for n, s in shapes.items()}


def network(
    path: Path, channels: int = 3, sizes: Sizes = ("H", "W"), *, batch: int | str = 1,
    outputs: tuple[str, ...] = ("early", "late", "logits"), last: str = "Relu",
) -> Path:  # fmt: skip
    """Strides 4 and 8, then a classifier; 'inner' is what lies behind the first convolution."""
    more: dict[str, Any] = {"size": 3} if last == "LRN" else {}
    nodes = [
        helper.make_node("Conv", ["pixels", "w1", "b1"], ["inner"], strides=[4, 4],
                         pads=[2, 2, 1, 1]),
        helper.make_node("Relu", ["inner"], ["early"]),
        helper.make_node("Conv", ["early", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c2"], ["m2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(last, ["m2"], ["late"], **more),
        helper.make_node("GlobalAveragePool", ["late"], ["g"]),
        helper.make_node("Flatten", ["g"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["logits"]),
    ]  # fmt: skip
    ranks = {"early": 4, "late": 4, "inner": 4, "flat": 2, "logits": 2}
    ends = [
        helper.make_tensor_value_info(n, ONE, [f"{n}{i}" for i in range(ranks[n])]) for n in outputs
    ]
    image = helper.make_tensor_value_info("pixels", ONE, [batch, channels, *sizes])
    held = [numpy_helper.from_array(array, name) for name, array in weights(channels).items()]
    graph = helper.make_graph(nodes, "g", [image], ends, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def close_to(want: torch.Tensor) -> float:
    return CLOSE * float(want.detach().abs().max())


def by_torch(
    image: torch.Tensor, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Early and late side by side on the finest cells, channels last."""
    w = {n: torch.from_numpy(a) for n, a in weights(channels).items()}
    x = image.expand(-1, channels, -1, -1)
    x = (x - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    early = functional.conv2d(functional.pad(x, (2, 1, 2, 1)), w["w1"], w["b1"], 4).relu()
    late = functional.max_pool2d(functional.conv2d(early, w["w2"], padding=1), 2).relu()
    both = torch.cat([early, late.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
    return both.permute(0, 2, 3, 1)


@pytest.mark.parametrize("sizes", [("H", "W"), (224, 224), (48, 64)])
@pytest.mark.parametrize(("camera", "channels"), [(1, 1), (1, 3), (3, 3)])
def test_graph_gives_features_and_gradients_of_torch(
    tmp_path: Path, sizes: Sizes, camera: int, channels: int
) -> None:
    path = network(tmp_path / "net.onnx", channels, sizes)
    made = onnx_feature_graph(path, camera=camera, size=32)
    assert (made.layers, made.stride, made.align) == (("early", "late"), 4, 8)
    assert (made.channels, made.camera, made.backbone) == (10, camera, "onnx")
    assert made.maps == ((4, 4), (6, 8))
    paths = {}
    for role, model in detector_graphs(made.model).items():
        paths[role] = str(tmp_path / f"{role}.onnx")
        onnx.save(model, paths[role])
    pair = OrtBackend(1).pair(paths["features_forward"], paths["features_backward"])
    rng = np.random.default_rng(1)
    mean, std = (MEAN, STD) if channels == 3 else ((0.0,), (1.0,))
    for height, width in ((32, 32), (24, 56)):
        image = rng.random((2, camera, height, width), dtype=np.float32)
        x = torch.from_numpy(image).requires_grad_()
        want = by_torch(x, channels, mean, std)
        found = np.array(pair.forward({"image": image})["features"])
        np.testing.assert_allclose(found, want.detach(), atol=close_to(want))
        cotangent = rng.standard_normal(found.shape).astype(np.float32)
        (slope,) = torch.autograd.grad(want, x, torch.from_numpy(cotangent))
        gradient = pair.backward({"features": cotangent})["image"]
        np.testing.assert_allclose(gradient, slope, atol=CLOSE * float(slope.abs().max()))
        oracle = graph_in_torch(made.model)(torch.from_numpy(image))
        np.testing.assert_allclose(oracle, want.detach(), atol=close_to(want))


def test_normalisation_and_selection_are_the_users(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", 3)
    made = onnx_feature_graph(path, select=[7, 0, 2], size=32, mean=[0.5], std=[0.1, 0.2, 0.4])
    assert made.maps == ()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want = by_torch(image, 3, (0.5,) * 3, (0.1, 0.2, 0.4))[..., [7, 0, 2]]
    np.testing.assert_allclose(graph_in_torch(made.model)(image), want, atol=close_to(want))


def test_pooled_layers_are_interpolated_as_in_torch(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", 1)
    made = onnx_feature_graph(path, camera=1, pool=3, size=32)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    both = by_torch(image, 1, (0.0,), (1.0,)).permute(0, 3, 1, 2)
    early, late = both[:, :4], both[:, 4:, ::2, ::2]
    early, late = (functional.avg_pool2d(f, 3, 1, 1) for f in (early, late))
    late = functional.interpolate(late, scale_factor=2.0, mode="bilinear")
    want = torch.cat([early, late], 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(graph_in_torch(made.model)(image), want, atol=close_to(want))


def test_inner_tensors_are_layers_finest_first(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", 1, outputs=("logits",))
    found = onnx_layers(path, ("late", "inner"), 32)
    assert found.names == ("inner", "late")
    assert (found.channels, found.strides) == (WIDTHS, (4, 8))
    made = onnx_feature_graph(path, ("inner",), camera=1, size=32)
    assert made.align == 4
    assert "MatMul" not in {node.op_type for node in made.model.graph.node}


def test_reach_is_about_the_kernel(tmp_path: Path) -> None:
    made = onnx_feature_graph(network(tmp_path / "net.onnx", 1), ("early",), camera=1, size=32)
    assert 3 <= made.reach <= 4  # 5 x 5 pixels, 1.5 pixels off the cell's centre


def missing(path: Path) -> None:
    onnx_feature_graph(network(path), ("layer9",))


def no_map(path: Path) -> None:
    onnx_feature_graph(network(path), ("logits",))


def no_map_at_all(path: Path) -> None:
    onnx_feature_graph(network(path, outputs=("logits",)))


def twice(path: Path) -> None:
    onnx_feature_graph(network(path), ("early", "early"))


def grey_network(path: Path) -> None:
    onnx_feature_graph(network(path, 1), camera=3)


def odd_size(path: Path) -> None:
    onnx_feature_graph(network(path), size=36)


def means(path: Path) -> None:
    onnx_feature_graph(network(path), size=32, mean=[0.1, 0.2])


def no_spread(path: Path) -> None:
    onnx_feature_graph(network(path), size=32, std=[0.0])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (missing, "no tensor 'layer9'.*outputs are early, late, logits.*inner tensors.*early, m2"),
        (no_map, r"'logits' is \(1, 10\).*in front of the pooling"),
        (no_map_at_all, "no output of four dimensions.*--layers; there are early"),
        (twice, "once each"),
        (grey_network, "--channels 1"),
        (odd_size, "9 x 9 cells|4 x 4 cells|--size"),
        (means, "one for each of the network's 3 channels"),
        (no_spread, "std must be positive"),
    ],
)
def test_wrong_wishes_are_refused(ask: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        ask(tmp_path / "net.onnx")


def test_an_input_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"1 or 3, height, width.*'pixels' float32 \(1, 4, H, W\)"):
        onnx_layers(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="no valid ONNX model"):
        onnx_layers(tmp_path / "net.onnx")


def test_a_network_of_one_size_is_refused(tmp_path: Path) -> None:
    """An embedding of every cell, as transformers have it, fixes the size."""
    path = network(tmp_path / "net.onnx", sizes=(32, 32))
    model = onnx.load(path)
    places = np.zeros((1, WIDTHS[0], 8, 8), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(places, "places"))
    relu = model.graph.node[1]
    relu.output[0] = "before"
    model.graph.node.insert(2, helper.make_node("Add", ["before", "places"], ["early"]))
    onnx.save(model, path)
    with pytest.raises(ModelError, match="without sizes as constants"):
        onnx_feature_graph(path, size=32)


def test_an_operator_without_gradient_is_named(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", last="LRN")
    with pytest.raises(UnsupportedOperatorError, match="LRN"):
        onnx_feature_graph(path, ("late",), size=32)
