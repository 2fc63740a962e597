"""Fold a constant added after a linear operator into its bias."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import LINEAR, bias_of, output_channels
from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def fold_offsets(model: ModelProto) -> PassResult:
    """Fold Add or Sub of a constant per channel after Conv, ConvTranspose or Gemm into the bias.

    Requires: constant weight and bias, one number or one per output channel, no other reader of the
    linear output. MatMul has no bias and stays.
    Ensures: one node less per fold; outputs equal up to rounding.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Add", "Sub"):
        side = next((i for i in (1, 0) if view.is_constant(node.input[i])), None)
        if (
            side is None
            or (node.op_type == "Sub" and side == 0)
            or view.is_constant(node.input[1 - side])
        ):
            continue
        reason = _fold(view, node, side)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _fold(view: GraphView, add: NodeProto, side: int) -> str:
    data = add.input[1 - side]
    linear = view.producer(data)
    if linear is None or linear.op_type not in LINEAR[:3]:
        return "no operator with a bias comes before it"
    if view.only_user(data) is not add:
        return f"the output of {label(linear)} is used elsewhere too"
    weight, offset = view.constant(linear.input[1]), view.constant(add.input[side])
    if weight is None or offset is None:
        return f"the weight of {label(linear)} is not constant"
    channels = output_channels(linear, weight)
    bias = bias_of(view, linear, channels, weight.dtype)
    if bias is None:
        return f"the bias of {label(linear)} is not a constant vector"
    rank = weight.ndim
    axis_shape = tuple(channels if i == 1 else 1 for i in range(rank))
    padded = (1,) * (rank - offset.ndim) + offset.shape
    if offset.ndim > rank or (offset.size != 1 and padded != axis_shape):
        return "the constant is not one number per output channel"
    if linear.op_type == "Gemm" and any(a.name == "beta" and a.f != 1 for a in linear.attribute):
        return f"{label(linear)} scales its bias"
    vector = offset.reshape(-1).astype(np.float64) * (-1 if add.op_type == "Sub" else 1)
    total = np.broadcast_to(bias + vector, (channels,)).astype(weight.dtype)
    inputs = [linear.input[0], linear.input[1], view.add_constant(f"{add.output[0]}_bias", total)]
    del linear.input[:]
    linear.input.extend(inputs)
    linear.output[0] = add.output[0]
    view.replace(add)
    return ""
