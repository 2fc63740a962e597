"""A layer of the discriminator in a bundle: from a PGGAN, and cut out of an ONNX file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from unblemish.cli import main
from unblemish.errors import ConfigError, ModelError
from unblemish.export.build import build_bundle, plan, write_plan
from unblemish.export.models.checkpoint import load_model
from unblemish.export.models.pggan import DiscriminatorFeatures
from unblemish.export.options import ExportOptions
from unblemish.images import write_image
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.inspector import Inspector

CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # float32 in engines against torch, a few layers


def _pair(bundle: Any) -> Any:
    stem = "discriminator_features"
    return OrtBackend(1).pair(
        str(bundle.graph(f"{stem}_forward")), str(bundle.graph(f"{stem}_backward"))
    )


@pytest.fixture(scope="module")
def layer_plan(pggan_path: Path) -> Any:
    """What would be written of a PGGAN with its discriminator's layer of 8 px. Do not change it."""
    return plan(pggan_path, ExportOptions(discriminator_layer="8"))


def _hooked(network: Any, side: int) -> list[torch.Tensor]:
    """What the last convolution at a size gives, once the network is called."""
    kept: list[torch.Tensor] = []
    scales = network.scaleLayers
    last = {4: network.groupScaleZero[0], 8: scales[0][1], 16: scales[1][1]}[side]
    last.register_forward_hook(lambda *call: kept.append(F.leaky_relu(call[2], 0.2)))
    return kept


@pytest.mark.parametrize(("side", "width"), [(4, 8), (8, 8), (16, 7)])
def test_layers_of_a_pggan_are_what_its_last_convolutions_give(
    pggan_networks: Any, side: int, width: int
) -> None:
    network = pggan_networks()[1].folded()
    image = torch.rand(2, 3, 16, 16)
    found = DiscriminatorFeatures(network, side)(image)
    kept = _hooked(network, side)
    network(image)
    assert found.shape == (2, width, side, side)
    torch.testing.assert_close(found, kept[0])


def test_layer_in_a_bundle_and_its_gradient_are_those_of_torch(
    pggan_path: Path, layer_plan: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    options = ExportOptions(discriminator_layer="8")
    bundle = write_plan(layer_plan, pggan_path, tmp_path / "part.bundle", options)
    network = load_model(pggan_path).discriminator
    kept = _hooked(network, 8)
    assert network is not None
    image = rng.uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)
    leaf = torch.from_numpy(image).requires_grad_()
    network(leaf)
    cotangent = rng.standard_normal(kept[0].shape).astype(np.float32)
    (slope,) = torch.autograd.grad((kept[0] * torch.from_numpy(cotangent)).sum(), leaf)

    pair = _pair(bundle)
    found = np.array(pair.forward({"image": image})["features"])
    np.testing.assert_allclose(found, kept[0].detach().numpy(), **CLOSE)
    back = pair.backward({"features": cotangent})["image"]
    size = float(slope.abs().max())
    np.testing.assert_allclose(back / size, slope.numpy() / size, **CLOSE)
    figures = bundle.manifest.parity
    assert figures["discriminator_features_gradient"] < options.gradient_tolerance
    outputs = bundle.manifest.graphs["discriminator_features_forward"].outputs
    assert [t.name for t in outputs if t.role == "feature"] == ["features"]
    # The penalty is another thing, which nobody asked for.
    assert bundle.manifest.rgi.discriminator_weight == 0
    assert "discriminator_forward" not in bundle.manifest.graphs


def test_parity_refuses_a_layer_that_strays(
    pggan_path: Path, layer_plan: Any, tmp_path: Path
) -> None:
    made, options = copy.deepcopy(layer_plan), ExportOptions(discriminator_layer="8")
    for tensor in made.graphs["discriminator_features_backward"].graph.initializer:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor) * np.float32(1.02)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match="discriminator_features_gradient differs"):
        write_plan(made, pggan_path, tmp_path / "part.bundle", options)


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """An ONNX generator of grey images of 16 pixels in [0, 1]."""
    weight = 0.5 * np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["flat"]),
        helper.make_node("Reshape", ["flat", "s"], ["square"]),
        helper.make_node("Sigmoid", ["square"], ["image"]),
    ]
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([-1, 1, 16, 16]), "s"),
    ]
    latent, image = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
        for name, shape in (("z", (3,)), ("image", (1, 16, 16)))
    )
    return _saved(tmp_path / "generator.onnx", nodes, latent, image, weights)


def _saved(path: Path, nodes: Any, into: Any, out: Any, weights: Any) -> Path:
    graph = helper.make_graph(nodes, "g", [into], [out], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def _discriminator(path: Path, channels: int = 1) -> tuple[Path, NDArray[Any]]:
    """picture -> convolution -> tanh -> pool -> dense; and the convolution's weights."""
    rng = np.random.default_rng(2)
    conv = rng.standard_normal((5, channels, 3, 3)).astype(np.float32)
    dense = rng.standard_normal((5, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Tanh", ["c"], ["inner"]),
        helper.make_node("GlobalAveragePool", ["inner"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["score"]),
    ]
    kind = TensorProto.FLOAT
    picture = helper.make_tensor_value_info("picture", kind, ["n", channels, 16, 16])
    score = helper.make_tensor_value_info("score", kind, ["n", 1])
    weights = [numpy_helper.from_array(conv, "w"), numpy_helper.from_array(dense, "d")]
    return _saved(path, nodes, picture, score, weights), conv


def test_inner_tensor_of_an_onnx_discriminator_is_cut_out(
    generator: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    path, weights = _discriminator(tmp_path / "d.onnx")
    options = ExportOptions(discriminator_onnx=path, discriminator_layer="inner")
    bundle = build_bundle(generator, tmp_path / "part.bundle", options=options)
    image = rng.random((2, 1, 16, 16)).astype(np.float32)
    leaf = torch.from_numpy(image).requires_grad_()
    convolved = F.conv2d(leaf, torch.from_numpy(weights), stride=2, padding=1)
    expected = torch.tanh(convolved)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    pair = _pair(bundle)
    found = np.array(pair.forward({"image": image})["inner"])
    np.testing.assert_allclose(found, expected.detach().numpy(), **CLOSE)
    back = pair.backward({"inner": np.ones_like(found)})["image"]
    np.testing.assert_allclose(back, slope.numpy(), **CLOSE)
    assert bundle.manifest.parity["discriminator_features_differences"] < 0.05
    with Inspector.open(bundle, refine="anogan", threads=1, max_steps=5) as inspector:
        found_image = inspector.search((255 * image[0, 0]).astype(np.uint8))
    assert np.isfinite(found_image.objective)


def test_without_a_layer_the_outputs_count(generator: Path, tmp_path: Path) -> None:
    path, _ = _discriminator(tmp_path / "d.onnx")
    made: Any = plan(generator, ExportOptions(discriminator_onnx=path))
    outputs = [v.name for v in made.graphs["discriminator_features_forward"].graph.output]
    assert "score" in outputs


@pytest.mark.parametrize("layer", ["5", "32", "conv1"])
def test_layers_that_a_pggan_has_not_are_named(pggan_checkpoint: Path, layer: str) -> None:
    with pytest.raises(ConfigError, match=f"are 4, 8, 16, .*found --discriminator-layer {layer}"):
        plan(pggan_checkpoint, ExportOptions(discriminator_layer=layer))


def test_tensors_that_an_onnx_discriminator_has_not_are_named(
    generator: Path, tmp_path: Path
) -> None:
    path, _ = _discriminator(tmp_path / "d.onnx")
    options = ExportOptions(discriminator_onnx=path, discriminator_layer="c9")
    with pytest.raises(ConfigError, match=r"no tensor 'c9'.*inner"):
        plan(generator, options)


def test_discriminators_of_other_images_are_refused(generator: Path, tmp_path: Path) -> None:
    path, _ = _discriminator(tmp_path / "d.onnx", channels=3)
    options = ExportOptions(discriminator_onnx=path, discriminator_layer="inner")
    with pytest.raises(ModelError, match="1, 16, 16"):
        plan(generator, options)


def test_model_without_discriminator_wants_its_file(generator: Path) -> None:
    with pytest.raises(ConfigError, match="Give its ONNX file with --discriminator-onnx"):
        plan(generator, ExportOptions(discriminator_layer="4"))


def test_export_and_calibrate_from_the_command_line(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, normals = str(tmp_path / "part.bundle"), str(tmp_path)
    write_image(tmp_path / "frame.png", np.full((16, 16), 90, np.uint8))
    calibrate = ["calibrate", out, "--normals", normals, "--refine", "anogan"]
    assert main(["export", str(generator), "--out", out]) == 0
    assert main(calibrate) == 2
    assert "--discriminator-layer 4" in capsys.readouterr().err
    path, _ = _discriminator(tmp_path / "d.onnx")
    layer = ["--discriminator-onnx", str(path), "--discriminator-layer", "inner"]
    assert main(["export", str(generator), "--out", out, *layer]) == 0
    assert main(["show", out]) == 0
    assert "discriminator_features_forward" in capsys.readouterr().out
    assert main(calibrate) == 2  # one image is too few
    assert "image" in capsys.readouterr().err
