"""Merge nearest-neighbour doubling with the convolution behind it: 2.25 times fewer products.

In one dimension, with u[j] = x[j // 2] (zero outside) and y[o] = sum_k w[k] u[o + k - p],

    y[o] = sum_i x[i] t[o + (K - 1 - p) - 2 i],   t[s] = w[K - 1 - s] + w[K - s]

which is a transposed convolution of stride 2, kernel K + 1 and padding K - 1 - p: the turned kernel
convolved with the box (1, 1). Both forms pad with the same zeros, so nothing is approximated.
A 3x3 kernel with padding 1 becomes 4x4: 16 products per small pixel and output map instead of 36.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import ConvSettings, settings_of
from unblemish.export.passes.graph_view import GraphView, attributes_of, label
from unblemish.export.passes.result import PassResult


def merge_upsample_conv(model: ModelProto) -> PassResult:
    """Replace nearest ×2 Resize (or Upsample) followed by Conv by one strided ConvTranspose.

    Requires: doubling of every spatial dimension and of no other; Conv of stride 1 and dilation 1
    with constant weight and padding below the kernel size, the only reader of the doubled tensor.
    Run it before differentiation: the gradient then has the merged form as well.
    Ensures: the same outputs up to rounding; the doubled tensor is never made.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Resize", "Upsample"):
        reason = _merge(view, node)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def _merge(view: GraphView, resize: NodeProto) -> str:
    conv = view.only_user(resize.output[0])
    if conv is None or conv.op_type != "Conv" or conv.input[0] != resize.output[0]:
        return "no Conv alone reads the enlarged tensor"
    weight = view.constant(conv.input[1])
    if weight is None:
        return f"the weight of {label(conv)} is not constant"
    reason = _not_doubling(view, resize, weight.ndim)
    if reason:
        return reason
    settings = settings_of(conv, weight)
    if set(settings.strides) != {1} or set(settings.dilations) != {1}:
        return f"{label(conv)} has strides {settings.strides} and dilations {settings.dilations}"
    pads = _explicit_pads(settings, weight.shape[2:])
    if any(p >= k for p, k in zip(pads, weight.shape[2:] * 2, strict=True)):
        return f"{label(conv)} pads by its whole kernel"
    merged = _conv_transpose(view, resize.input[0], conv, weight, pads, settings.group)
    view.replace(conv, merged)
    view.replace(resize)
    return ""


def _conv_transpose(
    view: GraphView, data: str, conv: NodeProto, weight: NDArray[Any], pads: list[int], group: int
) -> NodeProto:
    kernel = view.add_constant(f"{conv.input[1]}_merged", doubled_kernel(weight, group))
    sizes = weight.shape[2:]
    return view.node(
        "ConvTranspose",
        [data, kernel, *conv.input[2:]],
        list(conv.output),
        group=group,
        kernel_shape=[k + 1 for k in sizes],
        pads=[k - 1 - p for k, p in zip(sizes * 2, pads, strict=True)],
        strides=[2] * len(sizes),
    )


def doubled_kernel(weight: NDArray[Any], group: int = 1) -> NDArray[Any]:
    """Weight (M, C/group, k...) of a Conv as (C, M/group, k + 1...) of the ConvTranspose above."""
    channels, per_group, *kernel = weight.shape
    shaped = weight.reshape(group, channels // group, per_group, *kernel).swapaxes(1, 2)
    wide = np.flip(shaped, axis=tuple(range(3, shaped.ndim))).astype(np.float64)
    for axis in range(3, wide.ndim):
        widths = [(0, 0)] * wide.ndim
        widths[axis] = (0, 1)
        end = np.pad(wide, widths)
        wide = end + np.roll(end, 1, axis)
    merged = wide.reshape(group * per_group, channels // group, *wide.shape[3:])
    return np.ascontiguousarray(merged.astype(weight.dtype))


def _explicit_pads(settings: ConvSettings, kernel: tuple[int, ...]) -> list[int]:
    if settings.pads is not None:
        return list(settings.pads)
    small, large = [(k - 1) // 2 for k in kernel], [k // 2 for k in kernel]
    return [*small, *large] if settings.auto_pad == "SAME_UPPER" else [*large, *small]


def _not_doubling(view: GraphView, resize: NodeProto, rank: int) -> str:
    attributes = attributes_of(resize)
    if attributes.get("mode", "nearest") != "nearest":
        return f"its mode is {attributes['mode']}"
    if "axes" in attributes:
        return "it names axes"
    if _scales(view, resize, attributes) != [1.0, 1.0] + [2.0] * (rank - 2):
        return "it does not double every spatial dimension by constant scales"
    if resize.op_type == "Resize" and view.opset >= 11 and not _repeats_each_pixel(attributes):
        return "its coordinates do not repeat each pixel twice"
    return ""


def _scales(view: GraphView, resize: NodeProto, attributes: dict[str, Any]) -> list[float] | None:
    if "scales" in attributes:
        return [float(s) for s in attributes["scales"]]
    at = 2 if resize.op_type == "Resize" and view.opset >= 11 else 1
    scales = (
        view.constant(resize.input[at]) if len(resize.input) > at and resize.input[at] else None
    )
    if scales is not None and scales.size:
        return [float(s) for s in scales]
    return _scales_of_sizes(view, resize, attributes)


def _scales_of_sizes(
    view: GraphView, resize: NodeProto, attributes: dict[str, Any]
) -> list[float] | None:
    before, after = view.shape(resize.input[0]), view.shape(resize.output[0])
    if (
        before is None
        or after is None
        or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        return None
    # The batch may be symbolic; it keeps its size when the same name stands on both sides.
    pairs = list(zip(before, after, strict=True))
    if any(a is None or b is None for a, b in pairs):
        return None
    if all(a == b or (isinstance(a, int) and isinstance(b, int)) for a, b in pairs):
        return [1.0 if a == b else float(b) / float(a) for a, b in pairs]  # type: ignore[arg-type]
    return None


def _repeats_each_pixel(attributes: dict[str, Any]) -> bool:
    """Whether output i reads input i // 2, by the coordinate formulas of the operator."""
    i = np.arange(8, dtype=np.float64)
    mode = attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        x = (i + 0.5) / 2 - 0.5
    elif mode == "asymmetric":
        x = i / 2
    else:
        return False
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    rounded = {
        "floor": np.floor(x),
        "ceil": np.ceil(x),
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
    }[rounding]
    return bool(np.array_equal(np.clip(rounded, 0, 3), i // 2))
