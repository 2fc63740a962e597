"""Fold constant factors (equalised learning rate, colour scaling) into weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import (
    LINEAR,
    bias_of,
    output_channels,
    scale_inputs,
    scale_outputs,
)
from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def fold_scales(model: ModelProto) -> PassResult:
    """Fold Mul or Div by a constant next to Conv, ConvTranspose, Gemm or MatMul into its weight.

    linear(c x) = linear_c(x): zero padding stays zero. c linear(x) scales weight and bias.

    Requires: a factor that is one number or one per channel; constant weight (and bias, where it is
    scaled); no other reader of the tensor in between.
    Ensures: one node less per fold; outputs equal up to rounding.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Mul", "Div"):
        factor = _factor(view, node)
        if factor is None:
            continue
        data, scale = factor
        reason_after = _fold_after(view, node, data, scale)
        reason = reason_after and _fold_before(view, node, data, scale)
        if reason:
            reasons.append(f"{label(node)}: {reason_after}; {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _factor(view: GraphView, node: NodeProto) -> tuple[str, NDArray[Any]] | None:
    for data, other in ((0, 1), (1, 0)):
        value = view.constant(node.input[other])
        if (
            value is None
            or view.is_constant(node.input[data])
            or (node.op_type == "Div" and other == 0)
        ):
            continue
        value = value.astype(np.float64)
        return node.input[data], 1.0 / value if node.op_type == "Div" else value
    return None


def _fold_after(view: GraphView, mul: NodeProto, data: str, scale: NDArray[Any]) -> str:
    linear = view.producer(data)
    if linear is None or linear.op_type not in LINEAR:
        return "no linear operator comes before it"
    if view.only_user(data) is not mul:
        return f"the output of {label(linear)} is used elsewhere too"
    weight = view.constant(linear.input[1])
    if weight is None or (linear.op_type == "MatMul" and weight.ndim != 2):
        return f"the weight of {label(linear)} is not constant"
    channels = output_channels(linear, weight)
    vector = _per_channel(view, linear, data, scale, channels)
    if vector is None:
        return f"its factor is not one number per output channel of {label(linear)}"
    if not _assign(
        view, linear, scale_outputs(linear, weight.astype(np.float64), vector), vector, channels
    ):
        return f"the bias of {label(linear)} is not a constant vector"
    linear.output[0] = mul.output[0]
    view.replace(mul)
    return ""


def _fold_before(view: GraphView, mul: NodeProto, data: str, scale: NDArray[Any]) -> str:
    linear = view.only_user(mul.output[0])
    if linear is None or linear.op_type not in LINEAR or linear.input[0] != mul.output[0]:
        return "no linear operator alone reads it"
    weight = view.constant(linear.input[1])
    if weight is None or (linear.op_type == "MatMul" and weight.ndim != 2):
        return f"the weight of {label(linear)} is not constant"
    if linear.op_type == "Gemm" and any(a.name == "transA" and a.i for a in linear.attribute):
        return f"{label(linear)} transposes its input"
    channels = _input_channels(linear, weight)
    vector = _per_channel(view, linear, data, scale, channels)
    if vector is None:
        return f"its factor is not one number per input channel of {label(linear)}"
    scaled = scale_inputs(linear, weight.astype(np.float64), vector).astype(weight.dtype)
    linear.input[1] = view.add_constant(f"{linear.input[1]}_scaled", scaled)
    linear.input[0] = data
    view.replace(mul)
    return ""


def _input_channels(linear: NodeProto, weight: NDArray[Any]) -> int:
    if linear.op_type == "Conv":
        group = next((a.i for a in linear.attribute if a.name == "group"), 1)
        return int(weight.shape[1] * group)
    transposed = any(a.name == "transB" and a.i for a in linear.attribute)
    return int(weight.shape[1 if transposed else 0])


def _assign(
    view: GraphView, linear: NodeProto, weight: NDArray[Any], scale: NDArray[Any], channels: int
) -> bool:
    dtype = view.constant(linear.input[1]).dtype  # type: ignore[union-attr]
    if len(linear.input) > 2 and linear.input[2]:
        bias = bias_of(view, linear, channels, dtype)
        if bias is None:
            return False
        linear.input[2] = view.add_constant(
            f"{linear.input[2]}_scaled", (bias * scale).astype(dtype)
        )
    linear.input[1] = view.add_constant(f"{linear.input[1]}_scaled", weight.astype(dtype))
    return True


def _per_channel(
    view: GraphView, linear: NodeProto, data: str, scale: NDArray[Any], channels: int
) -> NDArray[Any] | None:
    """One factor per channel of `data` (axis 1 of convolutions, else the last), or None."""
    if scale.size == 1:
        shape = view.shape(data)
        grows = scale.ndim > (len(shape) if shape is not None else 0)
        return None if grows and scale.ndim else np.full(channels, scale.reshape(()))
    shape = view.shape(data)
    if shape is None or scale.ndim > len(shape):
        return None
    axis = 1 if linear.op_type in ("Conv", "ConvTranspose") else len(shape) - 1
    padded = (1,) * (len(shape) - scale.ndim) + scale.shape
    expected = tuple(channels if i == axis else 1 for i in range(len(shape)))
    return scale.reshape(-1) if padded == expected else None
