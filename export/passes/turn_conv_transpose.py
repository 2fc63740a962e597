"""Turn a transposed convolution of stride 1 into a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import ConvSettings, settings_of
from unblemish.export.passes.graph_view import GraphView, label
from unblemish.export.passes.result import PassResult


def turn_conv_transpose(model: ModelProto) -> PassResult:
    """Replace ConvTranspose of stride 1 by Conv with the kernel turned over.

    The weight (C, M/group, k...) becomes (M, C/group, k... reversed); with dilation d the padding p
    becomes d (k - 1) - p on both ends, plus output_padding at the end.

    Requires: stride 1 in every dimension, constant weight, 0 <= p <= d (k - 1).
    Ensures: the same outputs; engines have far better kernels for Conv.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("ConvTranspose"):
        reason = _turn(view, node)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _turn(view: GraphView, node: NodeProto) -> str:
    weight = view.constant(node.input[1])
    if weight is None:
        return "its weight is not constant"
    settings = settings_of(node, weight)
    if any(stride != 1 for stride in settings.strides):
        return f"its stride is {settings.strides}"
    if settings.output_shape is not None:
        return "output_shape leaves the padding to the engine"
    pads = _pads(settings, weight.shape[2:])
    if min(pads) < 0:
        return "it crops more than the kernel's reach, which no padding of a Conv can do"
    turned = view.add_constant(f"{node.input[1]}_turned", flip_kernel(weight, settings.group))
    conv = view.node(
        "Conv",
        [node.input[0], turned, *node.input[2:]],
        list(node.output),
        dilations=settings.dilations,
        group=settings.group,
        kernel_shape=weight.shape[2:],
        pads=pads,
        strides=settings.strides,
    )
    view.replace(node, conv)
    return ""


def _pads(settings: ConvSettings, kernel: tuple[int, ...]) -> list[int]:
    reach = [d * (k - 1) for d, k in zip(settings.dilations, kernel, strict=True)]
    if settings.pads is None:
        # SAME: the output has the size of the input, so both ends of the Conv take `reach`;
        # SAME_UPPER crops the odd element of a ConvTranspose at the end: the Conv pads the start.
        small, large = [r // 2 for r in reach], [r - r // 2 for r in reach]
        return [*large, *small] if settings.auto_pad == "SAME_UPPER" else [*small, *large]
    begins, ends = settings.pads[: settings.rank], settings.pads[settings.rank :]
    extra = settings.output_padding
    return [
        *(r - p for r, p in zip(reach, begins, strict=True)),
        *(r - p + o for r, p, o in zip(reach, ends, extra, strict=True)),
    ]


def flip_kernel(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """Weight (C, M/group, k...) of a ConvTranspose as the (M, C/group, k...) weight of a Conv."""
    channels, per_group, *kernel = weight.shape
    shaped = weight.reshape(group, channels // group, per_group, *kernel).swapaxes(1, 2)
    flipped = np.flip(shaped, axis=tuple(range(3, shaped.ndim)))
    return np.ascontiguousarray(flipped.reshape(group * per_group, channels // group, *kernel))
