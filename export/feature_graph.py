"""From a network's weights to one graph: image in, feature vectors of all cells out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unblemish.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

IMAGE, FEATURES = "image", "features"
# ImageNet's channel statistics, which torchvision's weights expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REACH_SHARE = 0.95


@dataclass(frozen=True)
class FeatureGraph:
    """A feature extractor ready for export.

    Args:
        model: 'image' (batch, C, H, W) float32 in [0, 1] -> 'features'
            (batch, H / stride, W / stride, channels) float32; H and W any multiples of `align`.
        reach: radius in pixels around a cell that holds 95 % of the energy of its gradient.
        maps: (channels, stride) of every layer in a feature vector; empty where channels were
            selected.
        oracle: the torch module behind it, or None.
    """

    model: onnx.ModelProto
    backbone: str
    layers: tuple[str, ...]
    stride: int
    align: int
    reach: int
    channels: int
    parameters: int
    camera: int
    oracle: Any = None
    maps: tuple[tuple[int, int], ...] = ()


def feature_graph(
    weights: Path,
    *,
    layers: tuple[str, ...] | None = None,
    method: str = "padim",
    backbone: str | None = None,
    camera: int = 3,
    pool: int = 0,
    select: Sequence[int] | None = None,
    size: int = 224,
) -> FeatureGraph:
    """Build the extractor of a network.

    Layers are brought to the cells of the finest: by repetition (PaDiM), or by bilinear
    interpolation where they are pooled (PatchCore).

    Args:
        weights: see `load_backbone`.
        layers: by torchvision's names; None for the method's own.
        camera: channels of the images, 1 or 3.
        pool: side of the mean over neighbouring cells, odd; 0 for none.
        select: channels kept of all concatenated ones; None for all.
        size: side of an example image.
    Raises: ModelError, ConfigError as `load_backbone`; MissingDependencyError without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "train", "exporting a network") from error
    from unblemish.export.backbones.grey import make_grey
    from unblemish.export.backbones.weights import (
        default_layers,
        load_backbone,
        read_state,
        recognise,
        strides_of,
    )
    from unblemish.export.from_torch import to_onnx
    from unblemish.export.passes import optimise

    name = backbone or recognise(read_state(weights), weights)
    chosen = layers or default_layers(name, method)
    network = load_backbone(weights, chosen, name)
    if camera == 1:
        make_grey(network, MEAN, STD)
    strides = [strides_of(name)[layer] for layer in chosen]
    extractor = _extractor(network, strides, camera, pool, select)
    with torch.no_grad():
        probe = torch.zeros(1, camera, strides[-1] * 2, strides[-1] * 2)
        channels = int(extractor(probe).shape[3])
        normalised = probe if camera == 1 else (probe - extractor.mean) / extractor.std
        widths = [int(f.shape[1]) for f in network(normalised)]
    if size % strides[-1]:
        raise ConfigError(f"the size must be a multiple of {strides[-1]} for {name}; found {size}.")
    model = to_onnx(
        extractor, (camera, size, size), input_name=IMAGE, output_name=FEATURES, any_size=True
    )
    return FeatureGraph(
        optimise(model), name, chosen, min(strides), max(strides),
        _reach(extractor, camera, size, strides[-1]), channels,
        sum(p.numel() for p in network.parameters()), camera, extractor,
        () if select is not None else tuple(zip(widths, strides, strict=True)),
    )  # fmt: skip


def concatenated_channels(weights: Path, layers: tuple[str, ...], backbone: str | None) -> int:
    """Channels of all layers together, before any selection."""
    import torch

    from unblemish.export.backbones.weights import load_backbone

    network = load_backbone(weights, layers, backbone)
    with torch.no_grad():
        return sum(int(f.shape[1]) for f in network(torch.zeros(1, 3, 64, 64)))


def _extractor(
    network: Any, strides: list[int], camera: int, pool: int, select: Sequence[int] | None
) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional

    class Extractor(nn.Module):
        """Images in [0, 1] to feature vectors, channels last."""

        mean: Tensor
        std: Tensor
        chosen: Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
            chosen = None if select is None else torch.tensor(list(select))
            self.register_buffer("chosen", chosen)

        def forward(self, image: Tensor) -> Tensor:
            """image: (batch, camera, H, W). Returns (batch, h, w, c)."""
            x = image if camera == 1 else (image - self.mean) / self.std
            maps = [
                self._placed(f, stride // strides[0])
                for f, stride in zip(self.network(x), strides, strict=True)
            ]
            joined = torch.cat(maps, 1)
            if self.chosen is not None:
                joined = joined.index_select(1, self.chosen)
            return joined.permute(0, 2, 3, 1)

        def _placed(self, f: Tensor, times: int) -> Tensor:
            if pool:
                f = functional.avg_pool2d(f, pool, 1, pool // 2)
            if times == 1:
                return f
            mode = "bilinear" if pool else "nearest"
            return functional.interpolate(f, scale_factor=float(times), mode=mode)

    return Extractor().eval().requires_grad_(False)


def _reach(extractor: Any, camera: int, size: int, align: int) -> int:
    """Radius, px, of the square around a cell with 95 % of the energy of its gradient."""
    import torch

    generator = torch.Generator().manual_seed(0)
    side = max(size // align, 8) * align
    image = torch.rand(1, camera, side, side, generator=generator).requires_grad_()
    features = extractor(image)
    row, column = features.shape[1] // 2, features.shape[2] // 2
    direction = torch.randn(features.shape[3], generator=generator)
    (gradient,) = torch.autograd.grad((features[0, row, column] * direction).sum(), image)
    return radius_of(gradient[0].numpy(), row, column, side // features.shape[1])


def radius_of(gradient: NDArray[np.float32], row: int, column: int, cell: int) -> int:
    """Radius, px, of the square around a cell with 95 % of the energy of its gradient (C, H, W)."""
    energy = np.square(gradient, dtype=np.float64).sum(axis=0)
    y, x = np.ogrid[: energy.shape[0], : energy.shape[1]]
    centre = (row + 0.5) * cell - 0.5, (column + 0.5) * cell - 0.5
    distance = np.maximum(abs(y - centre[0]), abs(x - centre[1]))
    order = np.argsort(distance, axis=None)
    inside = np.cumsum(energy.ravel()[order]) >= _REACH_SHARE * energy.sum()
    return int(np.ceil(distance.ravel()[order][int(np.argmax(inside))]))
