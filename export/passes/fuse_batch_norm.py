"""Fuse batch normalisation at inference into the linear operator before it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from unblemish.export.passes.convolution import bias_of, output_channels, scale_outputs
from unblemish.export.passes.graph_view import GraphView, attributes_of, label
from unblemish.export.passes.result import PassResult

TARGETS = ("Conv", "ConvTranspose", "Gemm")


def fuse_batch_norm(model: ModelProto) -> PassResult:
    """Fold BatchNormalization into the weight and bias of Conv, ConvTranspose or Gemm.

    With s = scale / sqrt(var + epsilon), the weight of output channel m is multiplied by s[m] and
    the bias becomes (bias - mean) s + B.

    Requires: inference mode; all statistics, weight and bias constant; the linear output used by
    nothing else.
    Ensures: one node less per fusion; outputs equal up to rounding (statistics are
    combined in float64).
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for norm in view.named("BatchNormalization"):
        reason = _fuse(view, norm)
        if reason:
            reasons.append(f"{label(norm)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _fuse(view: GraphView, norm: NodeProto) -> str:
    attributes = attributes_of(norm)
    if attributes.get("training_mode", 0) or (view.opset < 7 and not attributes.get("is_test", 0)):
        return "it is in training mode"
    linear = view.producer(norm.input[0])
    if linear is None or linear.op_type not in TARGETS:
        return f"no {', '.join(TARGETS)} comes before it"
    if view.only_user(linear.output[0]) is not norm:
        return f"the output of {label(linear)} is used elsewhere too"
    statistics = [view.constant(name) for name in norm.input[1:5]]
    weight = view.constant(linear.input[1])
    if weight is None or any(s is None for s in statistics):
        return "weight or statistics are not constant"
    channels = output_channels(linear, weight)
    bias = bias_of(view, linear, channels, weight.dtype)
    if bias is None:
        return f"the bias of {label(linear)} is not a constant vector"
    gamma, beta, mean, variance = (np.asarray(s, np.float64) for s in statistics)
    if linear.op_type == "Gemm":
        # alpha A B + beta C: the scale passes through alpha; the bias is stored with beta = 1.
        bias = bias * attributes_of(linear).get("beta", 1.0)
    factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    new_bias = (bias.astype(np.float64) - mean) * factor + beta
    new_weight = scale_outputs(linear, weight.astype(np.float64), factor)
    inputs = [
        linear.input[0],
        view.add_constant(f"{linear.input[1]}_fused", new_weight.astype(weight.dtype)),
        view.add_constant(f"{norm.output[0]}_bias", new_bias.astype(weight.dtype)),
    ]
    fused = view.node(linear.op_type, inputs, [norm.output[0]])
    fused.attribute.extend(a for a in linear.attribute if a.name != "beta")
    if linear.op_type == "Gemm":
        fused.attribute.append(helper.make_attribute("beta", 1.0))
    view.replace(linear)
    view.replace(norm, fused)
    return ""
