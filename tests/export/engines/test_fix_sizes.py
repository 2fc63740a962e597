"""Graphs of one size: the same numbers, no shapes handed over, and what TensorRT takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export.engines.fix_sizes import fix_pair, fix_sizes, symbols
from unblemish.export.engines.operator_support import check_operators

# The same float32 operators in the same order, but for constants that were folded.
SAME = {"rtol": 1e-4, "atol": 1e-4}


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    values = session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()})
    return dict(zip(names, values, strict=True))


def same_numbers(
    forward: onnx.ModelProto, backward: onnx.ModelProto, sizes: dict[str, int]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The fixed pair, held against the pair it is made of."""
    there, back = fix_pair(forward, backward, sizes)
    rng = np.random.default_rng(0)
    feeds = {
        v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]).astype("f")
        for v in there.graph.input
    }
    want, found = run(forward, feeds), run(there, feeds)
    assert set(found) <= set(want)
    for name in found:
        np.testing.assert_allclose(found[name], want[name], **SAME)
    cotangents = {
        v.name: rng.standard_normal(want[v.name.removeprefix("ct_")].shape).astype("f")
        for v in backward.graph.input if v.name.startswith("ct_")
    }  # fmt: skip
    wanted = run(backward, {**feeds, **want, **cotangents})
    gradients = run(back, {**feeds, **found, **cotangents})
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(gradient / scale, wanted[name] / scale, **SAME)
    return there, back


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """ResNet18 for grey images, channels selected and pooled, and its gradient."""
    import torch

    from unblemish.export.backbones.resnet import RESNETS, ResNet
    from unblemish.export.detector import detector_graphs
    from unblemish.export.feature_graph import feature_graph

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(ResNet(RESNETS["resnet18"], ("layer1", "layer2")).state_dict(), path)
    graph = feature_graph(
        path, layers=("layer1", "layer2"), camera=1, size=64, pool=3, select=range(0, 60, 7)
    )
    return {str(role): model for role, model in detector_graphs(graph.model).items()}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 32)])
def test_features_of_one_size_are_taken_and_the_same(
    features: dict[str, onnx.ModelProto], height: int, width: int
) -> None:
    forward, backward = features["features_forward"], features["features_backward"]
    batch, *sides = sorted(symbols(forward), key=lambda s: _axis(forward, s))
    with pytest.raises(UnsupportedOperatorError, match="NonZero"):
        check_operators(backward, "features_backward")
    there, back = same_numbers(forward, backward, {batch: 2, sides[0]: height, sides[1]: width})
    for model in (there, back):
        assert not symbols(model)
        check_operators(model, "features", [(10, 16), (11, 4)])
        assert not {"Shape", "NonZero", "Range"} & {n.op_type for n in model.graph.node}
    kinds = {v.type.tensor_type.elem_type for v in there.graph.output}
    assert onnx.TensorProto.INT64 not in kinds  # shapes are constants of the way back now


def _axis(model: onnx.ModelProto, symbol: str) -> int:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return [d.dim_param for d in dims].index(symbol)


def test_free_weights_at_batch_one_are_taken_and_the_same(pggan_plan: Any) -> None:
    _, made = pggan_plan
    forward, backward = made.graphs["finetune_forward"], made.graphs["finetune_backward"]
    with pytest.raises(UnsupportedOperatorError, match="shape of its kernel must be known"):
        check_operators(backward, "finetune_backward", [(11, 4)])
    for model in same_numbers(forward, backward, {"batch": 1}):
        check_operators(model, "finetune", [(10, 16), (11, 4)])


def test_one_graph_is_fixed_alone(features: dict[str, onnx.ModelProto]) -> None:
    model = features["features"]
    batch, *sides = sorted(symbols(model), key=lambda s: _axis(model, s))
    fixed = fix_sizes(model, {batch: 1, sides[0]: 64, sides[1]: 32})
    image = np.random.default_rng(0).standard_normal((1, 1, 64, 32)).astype(np.float32)
    found, want = run(fixed, {"image": image}), run(model, {"image": image})
    np.testing.assert_allclose(found["features"], want["features"], **SAME)
    assert "Shape" not in {n.op_type for n in fixed.graph.node}
    assert "Shape" in {n.op_type for n in model.graph.node}  # the one given is left alone


def test_unknown_symbols_are_an_error(features: dict[str, onnx.ModelProto]) -> None:
    with pytest.raises(ModelError, match="unknown size batch"):
        fix_sizes(features["features"], dict.fromkeys(symbols(features["features"]) - {"batch"}, 8))


def test_flow_is_taken_with_any_number_of_cells(make_flow: Any) -> None:
    from unblemish.export.flow_graph import flow_graphs, flow_model

    flows = [make_flow(8, (6, 5), seed=1), make_flow(5, (3, 2), seed=2)]
    for role, model in flow_graphs(flow_model(flows)).items():
        check_operators(model, role, [(10, 16), (11, 4)])


def test_eight_bits_stay_eight_bits() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]>\n'
        "g (float[batch,3,h,w] image) => (float[b,2,u,v] y)\n"
        "<float s = {0.5}, float t = {0.25}, int8 zero = {0},"
        " int8[2,3,1,1] k = {1, 2, 3, 4, 5, 6}> {"
        " q = QuantizeLinear(image, s, zero) d = DequantizeLinear(q, s, zero)"
        " f = DequantizeLinear(k, t, zero) y = Conv(d, f) }"
    )
    fixed = fix_sizes(model, {"batch": 1, "h": 4, "w": 6})
    kinds = [node.op_type for node in fixed.graph.node]
    assert sorted(kinds) == ["Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    check_operators(fixed, "features")
    for node in fixed.graph.node:
        node.input[:] = ["one" if name == "zero" else name for name in node.input]
    fixed.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.int8), "one"))
    with pytest.raises(UnsupportedOperatorError, match="zero point must be a constant 0"):
        check_operators(fixed, "features")
