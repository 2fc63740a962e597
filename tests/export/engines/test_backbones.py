"""Every kind of backbone at the size it is used at: what TensorRT takes, for any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from unblemish.export.engines.fix_sizes import fix_pair
from unblemish.export.engines.lower_opset import lower_opset
from unblemish.export.engines.open_batch import BATCHES, open_batch
from unblemish.export.engines.operator_support import check_operators, operator_table

VERSIONS = ((10, 3), (10, 16), (11, 4))
# float32 through up to 130 layers, in the same order but for what was folded; relative l2.
FORWARD, GRADIENT = 1e-4, 1e-2


def graphs_of(name: str, method: str, folder: Path) -> dict[str, onnx.ModelProto]:
    """Features and gradient with random weights."""
    import torch

    from unblemish.export.backbones.efficientnet import EfficientNet
    from unblemish.export.backbones.resnet import RESNETS, ResNet
    from unblemish.export.backbones.weights import default_layers
    from unblemish.export.detector import detector_graphs
    from unblemish.export.feature_graph import feature_graph

    torch.manual_seed(0)
    layers = default_layers(name, method)
    network = ResNet(RESNETS[name], layers) if name in RESNETS else EfficientNet(name, layers)
    torch.save(network.state_dict(), folder / "net.pth")
    pool = 3 if method == "patchcore" else 0
    graph = feature_graph(
        folder / "net.pth", layers=layers, backbone=name, pool=pool, select=range(0, 60, 7)
    )
    return {str(role): model for role, model in detector_graphs(graph.model).items()}


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    values = session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()})
    return dict(zip(names, values, strict=True))


def off(found: Any, want: Any) -> float:
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("resnet18", "patchcore"),
        ("resnet18", "padim"),
        ("resnet50", "patchcore"),
        ("wide_resnet50_2", "patchcore"),
        ("efficientnet_b0", "padim"),
        ("efficientnet_b5", "patchcore"),
    ],
)
def test_backbones_are_taken_at_224_for_any_batch(name: str, method: str, tmp_path: Path) -> None:
    graphs = graphs_of(name, method, tmp_path)
    forward, backward = graphs["features_forward"], graphs["features_backward"]
    batch, _, *sides = (d.dim_param for d in forward.graph.input[0].type.tensor_type.shape.dim)
    ways = [fix_pair(forward, backward, {batch: n, **dict.fromkeys(sides, 224)}) for n in BATCHES]
    opened = [open_batch(*pair) for pair in zip(*ways, strict=True)]
    there, back = (one[0] for one in opened if one is not None)
    for model in (there, back):
        for version in VERSIONS:
            lowered = lower_opset(model, operator_table(version).opsets[1]).model
            check_operators(lowered, name, [version])
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (3, 3, 224, 224)).astype(np.float32)
    want, found = run(forward, {"image": image}), run(there, {"image": image})
    assert off(found["features"], want["features"]) < FORWARD
    cotangent = rng.standard_normal(want["features"].shape).astype(np.float32)
    feeds = {"image": image, "ct_features": cotangent}
    exact, gradient = run(backward, feeds | want), run(back, feeds | found)
    assert off(gradient["grad_image"], exact["grad_image"]) < GRADIENT
