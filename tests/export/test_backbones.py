"""Backbones: torchvision's sizes and names, recognition, and the graph against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unblemish.errors import ConfigError, ModelError
from unblemish.export.backbones.efficientnet import EFFICIENTNETS, EfficientNet
from unblemish.export.backbones.resnet import RESNETS, ResNet
from unblemish.export.backbones.weights import load_backbone, recognise
from unblemish.export.detector import check_detector, detector_graphs
from unblemish.export.feature_graph import feature_graph

# Parameters of torchvision's networks with their classifiers, as its documentation states them.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
}


def network(name: str, classifier: bool = False) -> torch.nn.Module:
    if name in RESNETS:
        return ResNet(RESNETS[name], ("layer4",), classifier)
    return EfficientNet(name, ("features.7",), classifier)


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        whole = network(name, classifier=True)
    assert sum(p.numel() for p in whole.parameters()) == PARAMETERS[name]
    assert name in (*RESNETS, *EFFICIENTNETS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_are_recognised_by_their_weights(name: str) -> None:
    with torch.device("meta"):
        state = network(name).state_dict()
    assert recognise(state, Path("w.pth")) == name


def written(tmp_path: Path, name: str, layers: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    made = ResNet(RESNETS[name], layers) if name in RESNETS else EfficientNet(name, layers)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    path = tmp_path / f"{name}.pth"
    torch.save(made.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "layers", "camera"),
    [
        ("resnet18", ("layer1", "layer2"), 1),
        ("efficientnet_b0", ("features.2", "features.3"), 3),
        pytest.param("resnet50", ("layer1", "layer3"), 3, marks=pytest.mark.slow),
        pytest.param("efficientnet_b1", ("features.2", "features.5"), 1, marks=pytest.mark.slow),
    ],
)
def test_graph_and_gradient_are_those_of_torch_at_two_sizes(
    tmp_path: Path, name: str, layers: tuple[str, ...], camera: int
) -> None:
    graph = feature_graph(
        written(tmp_path, name, layers), layers=layers, camera=camera, size=64, pool=3,
        select=range(0, 60, 7),
    )  # fmt: skip
    assert graph.backbone == name
    assert graph.channels == 9
    paths = {}
    for role, model in detector_graphs(graph.model).items():
        paths[role] = tmp_path / f"{role}.onnx"
        paths[role].write_bytes(model.SerializeToString())
    figures = check_detector(graph, paths, seed=0)  # raises out of tolerance
    assert figures["gradient"] < 1e-3


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="weights of none of"):
        load_backbone(path, ("layer1",))
    with pytest.raises(ModelError, match="no weights at"):
        load_backbone(tmp_path / "missing.pth", ("layer1",))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        load_backbone(tmp_path / "broken.pth", ("layer1",))


def test_layers_that_the_weights_lack_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "resnet18", ("layer2",))
    assert len(load_backbone(path, ("layer1", "layer2"))(torch.zeros(1, 3, 32, 32))) == 2
    with pytest.raises(ModelError, match="lacks"):
        load_backbone(path, ("layer3",))
    with pytest.raises(ConfigError, match="order"):
        load_backbone(path, ("layer2", "layer1"))
    with pytest.raises(ConfigError, match="has the layers"):
        load_backbone(path, ("features.1",))


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "resnet18", ("layer1",))
    state = torch.load(path, weights_only=True)
    state["conv1.weight"][0, 0, 0, 0] = float(np.nan)
    torch.save(state, path)
    with pytest.raises(ModelError, match="NaN"):
        load_backbone(path, ("layer1",))
