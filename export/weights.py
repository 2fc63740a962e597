"""Which initialisers of a generator are weights."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

# Inputs that steer an operator, by place; statistics of a normalisation are no weights either.
_SETTINGS = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "BatchNormalization": (3, 4),
    "Dropout": (1, 2),
}


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Float32 initialisers of rank >= 1 that are no settings: what fine-tuning may change."""
    steering = {
        node.input[place]
        for node in model.graph.node
        for place in _SETTINGS.get(node.op_type, ())
        if place < len(node.input)
    }
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and tensor.dims
        and tensor.name not in steering
    }
