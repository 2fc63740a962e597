"""Merge a convolution with the average pooling behind it: the mirror image of doubling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import settings_of
from unblemish.export.passes.graph_view import GraphView, attributes_of, label
from unblemish.export.passes.result import PassResult


def merge_conv_pool(model: ModelProto) -> PassResult:
    """Replace Conv of stride 1 followed by AveragePool of windows that touch by one strided Conv.

    Averaging windows of s is a convolution with the box 1/s; both together are a Conv of stride s
    with the kernel w * box of k + s - 1 taps. The gradient of doubling followed by Conv ends so: a
    3x3 Conv on the large tensor becomes 4x4 at a quarter of the places.

    Requires: AveragePool with stride equal to its kernel, unpadded and not rounding up, the only
    reader of a Conv of stride 1 and dilation 1 with explicit padding and constant weight.
    Ensures: the same outputs up to rounding; the large tensor is never made.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for pool in view.named("AveragePool"):
        reason = _merge(view, pool)
        if reason:
            reasons.append(f"{label(pool)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _merge(view: GraphView, pool: NodeProto) -> str:
    conv = view.producer(pool.input[0])
    if conv is None or conv.op_type != "Conv":
        return "no Conv comes before it"
    if view.only_user(conv.output[0]) is not pool:
        return f"the output of {label(conv)} is used elsewhere too"
    weight = view.constant(conv.input[1])
    if weight is None:
        return f"the weight of {label(conv)} is not constant"
    window = attributes_of(pool)["kernel_shape"]
    reason = _not_touching(attributes_of(pool), window)
    if reason:
        return reason
    settings = settings_of(conv, weight)
    if set(settings.strides) != {1} or set(settings.dilations) != {1} or settings.pads is None:
        return f"{label(conv)} is strided, dilated or padded by the engine"
    merged = view.add_constant(f"{conv.input[1]}_pooled", averaged_kernel(weight, window))
    node = view.node(
        "Conv",
        [conv.input[0], merged, *conv.input[2:]],
        list(pool.output),
        group=settings.group,
        kernel_shape=[k + s - 1 for k, s in zip(weight.shape[2:], window, strict=True)],
        pads=settings.pads,
        strides=window,
    )
    view.replace(conv)
    view.replace(pool, node)
    return ""


def _not_touching(attributes: dict[str, Any], window: list[int]) -> str:
    if attributes.get("strides", [1] * len(window)) != window:
        return "its stride differs from its window"
    padded = any(attributes.get("pads", [0])) or attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if padded or attributes.get("ceil_mode", 0) or set(attributes.get("dilations", [1])) != {1}:
        return "its windows are padded, dilated or rounded up"
    return ""


def averaged_kernel(weight: NDArray[Any], window: list[int]) -> NDArray[Any]:
    """Weight (M, C/group, k...) convolved with the box: (M, C/group, k + window - 1...)."""
    wide = weight.astype(np.float64)
    for axis, size in enumerate(window, start=2):
        widths = [(0, 0)] * wide.ndim
        widths[axis] = (0, size - 1)
        end = np.pad(wide, widths)
        wide = sum((np.roll(end, i, axis) for i in range(size)), np.zeros_like(end)) / size
    return np.ascontiguousarray(wide.astype(weight.dtype))
