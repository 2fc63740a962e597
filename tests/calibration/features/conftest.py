"""Random weights of a real network, and a folder of small normal images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unblemish.export.backbones.resnet import RESNETS, ResNet


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet18 up to layer2, random."""
    torch.manual_seed(0)
    network = ResNet(RESNETS["resnet18"], ("layer1", "layer2"))
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture
def normals(tmp_path: Path) -> Path:
    """Six grey images, 40 x 44, of one texture with noise."""
    folder = tmp_path / "normals"
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:44, 0:40]
    texture = 120 + 40 * np.sin(x / 3) * np.cos(y / 5)
    for index in range(6):
        image = texture + rng.normal(scale=8, size=texture.shape)
        cv2.imwrite(str(folder / f"{index}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return folder
