"""What rewrites of Conv and ConvTranspose share: attributes, weights, channel-wise scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from unblemish.export.passes.graph_view import GraphView, attributes_of

Array = NDArray[Any]
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class ConvSettings:
    """Attributes of a Conv or ConvTranspose of `rank` spatial dimensions, defaults filled in.

    `pads` is (begins..., ends...); None where `auto_pad` leaves it to the engine.
    """

    rank: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int
    pads: tuple[int, ...] | None
    auto_pad: str
    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...] | None


def settings_of(node: NodeProto, weight: Array) -> ConvSettings:
    """Read the attributes of a Conv or ConvTranspose node with this weight."""
    rank, given = weight.ndim - 2, attributes_of(node)
    auto = given.get("auto_pad", "NOTSET")
    pads = (
        given.get("pads", [0] * 2 * rank)
        if auto == "NOTSET"
        else [0] * 2 * rank
        if auto == "VALID"
        else None
    )
    return ConvSettings(
        rank=rank,
        strides=tuple(given.get("strides", [1] * rank)),
        dilations=tuple(given.get("dilations", [1] * rank)),
        group=given.get("group", 1),
        pads=tuple(pads) if pads is not None else None,
        auto_pad=auto,
        output_padding=tuple(given.get("output_padding", [0] * rank)),
        output_shape=tuple(given["output_shape"]) if "output_shape" in given else None,
    )


def output_channels(node: NodeProto, weight: Array) -> int:
    """Number of output channels of a linear node (features, for Gemm and MatMul)."""
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * int(attributes_of(node).get("group", 1))
    return int(weight.shape[0 if attributes_of(node).get("transB", 0) else 1])


def scale_outputs(node: NodeProto, weight: Array, scale: Array) -> Array:
    """Weight of a linear node whose output channel m is to be multiplied by scale[m]."""
    if node.op_type == "Conv":
        return weight * _column(scale, weight.ndim)
    if node.op_type == "ConvTranspose":
        # (C, M/group, k...): output m = g * M/group + j, input c belongs to group c // (C/group).
        group = int(attributes_of(node).get("group", 1))
        per_group = scale.reshape(group, 1, -1)
        shaped = weight.reshape(group, -1, *weight.shape[1:])
        return (shaped * per_group.reshape(*per_group.shape, *[1] * (weight.ndim - 2))).reshape(
            weight.shape
        )
    return weight * (scale[:, None] if attributes_of(node).get("transB", 0) else scale)


def scale_inputs(node: NodeProto, weight: Array, scale: Array) -> Array:
    """Weight of a linear node that absorbs a factor scale[c] on its input channel c."""
    if node.op_type == "Conv":
        # (M, C/group, k...): row m sees the channels of its own group.
        group = int(attributes_of(node).get("group", 1))
        per_group = scale.reshape(group, 1, -1)
        shaped = weight.reshape(group, -1, *weight.shape[1:])
        return (shaped * per_group.reshape(*per_group.shape, *[1] * (weight.ndim - 2))).reshape(
            weight.shape
        )
    if node.op_type == "ConvTranspose":
        return weight * _column(scale, weight.ndim)
    return weight * (scale if attributes_of(node).get("transB", 0) else scale[:, None])


def bias_of(view: GraphView, node: NodeProto, channels: int, dtype: np.dtype[Any]) -> Array | None:
    """Bias as a vector, zeros where absent; None where it is computed or of another shape."""
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(channels, dtype)
    bias = view.constant(node.input[2])
    if bias is None or bias.size not in (1, channels):
        return None
    return np.broadcast_to(bias.reshape(-1), (channels,))


def _column(scale: Array, rank: int) -> Array:
    return scale.reshape(-1, *[1] * (rank - 1))
