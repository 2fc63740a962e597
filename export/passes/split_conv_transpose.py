"""Write a strided transposed convolution as one convolution and a shuffle of pixels.

In one dimension, stride s and kernel t of length k: output o = s r + c - p collects
x[r - j] t[c + s j] for j = 0, 1, ... So the s residues c are s output channels of one Conv whose
kernel has ceil(k / s) taps, in reverse order; DepthToSpace interleaves them; p rows are cropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import ConvSettings, settings_of
from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def split_conv_transpose(model: ModelProto) -> PassResult:
    """Replace strided ConvTranspose by Conv, DepthToSpace and Slice.

    As many multiplications as before where the stride divides the kernel size, on the engine's
    fast path for Conv. Not among the default passes: ONNX Runtime gains, OpenVINO does not.

    Requires: two spatial dimensions of the same stride > 1, dilation 1, explicit padding, constant
    weight and bias.
    Ensures: the same outputs up to the order of summation.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("ConvTranspose"):
        reason = _split(view, node)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _split(view: GraphView, node: NodeProto) -> str:
    weight = view.constant(node.input[1])
    bias = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weight is None or (bias is None and len(node.input) > 2 and node.input[2]):
        return "its weight or bias is not constant"
    settings = settings_of(node, weight)
    crop = _crop(settings, weight.shape[2:])
    if isinstance(crop, str):
        return crop
    stride, taps = settings.strides[0], _taps(weight.shape[2:], settings.strides[0])
    inputs = [
        node.input[0],
        view.add_constant(f"{node.input[1]}_split", split_kernel(weight, stride, settings.group)),
    ]
    if bias is not None:
        inputs.append(view.add_constant(f"{node.input[2]}_split", np.repeat(bias, stride**2)))
    out = node.output[0]
    wide, full = view.fresh(f"{out}_residues"), view.fresh(f"{out}_full")
    conv = view.node(
        "Conv",
        inputs,
        [wide],
        group=settings.group,
        kernel_shape=taps,
        pads=[t - 1 for t in taps * 2],
        strides=[1, 1],
    )
    shuffle = view.node(
        "DepthToSpace", [wide], [full if any(crop) else out], blocksize=stride, mode="CRD"
    )
    view.replace(node, conv, shuffle, *([_slice(view, full, out, crop)] if any(crop) else []))
    return ""


def _crop(settings: ConvSettings, kernel: tuple[int, ...]) -> list[int] | str:
    """Rows and columns to cut: begins, then ends; or why this cannot be."""
    stride = settings.strides[0]
    if settings.rank != 2 or set(settings.strides) != {stride} or stride == 1:
        return f"its strides are {settings.strides}"
    if set(settings.dilations) != {1}:
        return f"its dilations are {settings.dilations}"
    if settings.pads is None or settings.output_shape is not None:
        return "its padding is left to the engine"
    spare = [stride * t - k for t, k in zip(_taps(kernel, stride), kernel, strict=True)]
    ends = [
        s + p - extra
        for s, p, extra in zip(spare, settings.pads[2:], settings.output_padding, strict=True)
    ]
    if min(ends) < 0:
        return "its output padding reaches beyond the kernel"
    return [*settings.pads[:2], *ends]


def _taps(kernel: tuple[int, ...], stride: int) -> list[int]:
    return [-(-k // stride) for k in kernel]


def _slice(view: GraphView, full: str, out: str, crop: list[int]) -> NodeProto:
    # An end of 0 would mean 'nothing': the largest int64 means 'to the end'.
    far = np.iinfo(np.int64).max
    ends = [-c if c else far for c in crop[2:]]
    bounds = [
        view.add_constant(f"{out}_{name}", np.array(value, np.int64))
        for name, value in (("starts", crop[:2]), ("ends", ends), ("axes", [2, 3]))
    ]
    return view.node("Slice", [full, *bounds], [out])


def split_kernel(weight: NDArray[Any], stride: int, group: int = 1) -> NDArray[Any]:
    """Weight (C, M/group, k, k) of a ConvTranspose as (M s^2, C/group, ceil(k/s), ceil(k/s)).

    Output channel m s^2 + a s + b of the Conv holds the rows of residue a and columns of residue b.
    """
    channels, per_group, height, width = weight.shape
    rows, columns = _taps((height, width), stride)
    padded = np.pad(
        weight, ((0, 0), (0, 0), (0, rows * stride - height), (0, columns * stride - width))
    )
    # t[c + s j]: axis of the kernel -> (j, c); the taps of a Conv run against j.
    parts = padded.reshape(group, channels // group, per_group, rows, stride, columns, stride)
    parts = parts[:, :, :, ::-1, :, ::-1]
    ordered = parts.transpose(0, 2, 4, 6, 1, 3, 5)
    return np.ascontiguousarray(ordered.reshape(-1, channels // group, rows, columns))
