"""ONNX operators in torch, one file per family; importing this package fills `OPERATORS`."""

from __future__ import annotations

from unblemish.runtime.backends.torch_ops import (
    activation,
    convolution,
    elementwise,
    indexing,
    layout,
    linear,
    normalisation,
    pooling,
    reduction,
    resize,
)
from unblemish.runtime.backends.torch_ops.registry import OPERATORS, TorchNode

__all__ = [
    "OPERATORS",
    "TorchNode",
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "layout",
    "linear",
    "normalisation",
    "pooling",
    "reduction",
    "resize",
]
