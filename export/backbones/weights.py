"""Read a network's weights and recognise the network by them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unblemish.errors import ConfigError, ModelError
from unblemish.export.backbones import efficientnet, resnet
from unblemish.export.backbones.efficientnet import EFFICIENTNETS, EfficientNet
from unblemish.export.backbones.resnet import RESNETS, ResNet
from unblemish.export.models.layouts import plain_names
from unblemish.export.models.loaded import settle

BACKBONES = (*RESNETS, *EFFICIENTNETS)


def load_backbone(path: Path, layers: tuple[str, ...], name: str | None = None) -> nn.Module:
    """Build the network that the weights belong to, up to the last of `layers`.

    Args:
        path: a state dict with torchvision's names (.pt, .pth, .safetensors), whole or truncated
            behind the last layer, with batch norms or folded.
        name: of the network; None to recognise it.
    Returns: normalised images (batch, 3, H, W) -> list of the layers' outputs; in inference mode.
    Raises: ModelError where the file cannot be read, belongs to another network or lacks a layer;
    ConfigError for an unknown name or layer.
    """
    state = read_state(path)
    name = name or recognise(state, path)
    network = _empty(name, layers, folded="bn1.weight" not in state)
    needed = network.state_dict()
    missing = [k for k in needed if k not in state and not k.endswith("num_batches_tracked")]
    if missing:
        raise ModelError(
            f"{path} lacks '{missing[0]}', which {name} up to {layers[-1]} needs. Give the whole "
            "state_dict, ask for earlier layers, or name the right network."
        )
    for key, tensor in needed.items():
        if key in state and tuple(state[key].shape) != tuple(tensor.shape):
            raise ModelError(
                f"{path}: '{key}' has shape {tuple(state[key].shape)}, {name} has "
                f"{tuple(tensor.shape)}: weights of another network."
            )
        if key in state and not bool(state[key].isfinite().all()):
            raise ModelError(f"{path}: '{key}' holds NaN or infinity. Download the file again.")
    network.load_state_dict({key: state[key] for key in needed if key in state}, strict=False)
    return settle(network)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Raises: ModelError where there is no such file, or it holds none.
    """
    if not path.is_file():
        raise ModelError(
            f"no weights at {path}. Give the ImageNet weights of one of {', '.join(BACKBONES)}, as "
            "torchvision publishes them (the state_dict, .pth or .safetensors), or an .onnx file."
        )
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    except Exception as error:  # safetensors' errors share no base class but Exception
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no state_dict. Save the network's state_dict().")
    return plain_names(content)


def recognise(state: Mapping[str, Tensor], path: Path) -> str:
    """Name of the network whose shapes these weights have.

    Raises: ModelError where it is none that is known.
    """
    for name in RESNETS:
        if _is_resnet(state, name):
            return name
    for name in EFFICIENTNETS:
        if "features.0.0.weight" in state and _fits(state, name):
            return name
    raise ModelError(
        f"{path}: weights of none of {', '.join(BACKBONES)} (the file begins with "
        f"'{next(iter(state), 'nothing')}'). Export the network to .onnx and give that."
    )


def strides_of(name: str) -> dict[str, int]:
    """Layer -> model pixels per cell. Raises: ConfigError for an unknown network."""
    if name in RESNETS:
        return resnet.STRIDES
    if name in EFFICIENTNETS:
        return efficientnet.STRIDES
    raise ConfigError(f"unknown network '{name}'; known are {', '.join(BACKBONES)}.")


def default_layers(name: str, method: str) -> tuple[str, ...]:
    """The layers that a method is published with, or the like of them."""
    three = ("layer1", "layer2", "layer3")
    if name in EFFICIENTNETS:
        three = ("features.2", "features.3", "features.5")
    return three[1:] if method == "patchcore" else three


def check_layers(name: str, layers: tuple[str, ...]) -> None:
    """Raise ConfigError where the network has no such layers, or they are not in its order."""
    order = list(strides_of(name))
    unknown = [layer for layer in layers if layer not in order]
    if unknown or not layers:
        raise ConfigError(f"{name} has the layers {', '.join(order)}; asked for {layers}.")
    if sorted(set(layers), key=order.index) != list(layers):
        raise ConfigError(f"layers must be in the order of {name}, each once; found {layers}.")


def _empty(name: str, layers: tuple[str, ...], folded: bool) -> nn.Module:
    check_layers(name, layers)
    if name in RESNETS:
        return ResNet(replace(RESNETS[name], folded=folded), layers)
    return EfficientNet(name, layers)


def _is_resnet(state: Mapping[str, Tensor], name: str) -> bool:
    """By the first block's width and the number of blocks; later layers may be cut off."""
    s = RESNETS[name]
    first = state.get("layer1.0.conv1.weight")
    if (
        first is None
        or first.shape[0] != s.width
        or s.bottleneck != ("layer1.0.conv3.weight" in state)
    ):
        return False
    held = [i for i in range(4) if f"layer{i + 1}.0.conv1.weight" in state]
    return all(
        f"layer{i + 1}.{s.blocks[i] - 1}.conv1.weight" in state
        and f"layer{i + 1}.{s.blocks[i]}.conv1.weight" not in state
        for i in held
    )


def _fits(state: Mapping[str, Tensor], name: str) -> bool:
    """By every shape that the file holds of the features."""
    with torch.device("meta"):
        shapes = EfficientNet(name, ("features.7",)).state_dict()
    held = [k for k in state if k.startswith("features.") and not k.startswith("features.8.")]
    return bool(held) and all(k in shapes and shapes[k].shape == state[k].shape for k in held)
