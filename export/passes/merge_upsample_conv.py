"""Merge nearest-neighbour doubling with the convolution behind it: 2.25 times fewer products.

In one dimension, with u[j] = x[j // 2] (zero outside) and y[o] = sum_k w[k] u[o + k - p],

    y[o] = sum_i x[i] t[o + (K - 1 - p) - 2 i],   t[s] = w[K - 1 - s] + w[K - s]

which is a transposed convolution of stride 2, kernel K + 1 and padding K - 1 - p: the turned kernel
convolved with the box (1, 1). Both forms pad with the same zeros, so nothing is approximated. For a
3x3 kernel with padding 1 each output pixel sees 2x2 input pixels, whose weights depend on its
parity only; the 'phases' form computes the four parities as 4 M channels of one 2x2 Conv.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from unblemish.export.passes.convolution import ConvSettings, settings_of
from unblemish.export.passes.graph_view import GraphView, attributes_of, label
from unblemish.export.passes.result import Pass, PassResult

Form = Literal["transposed", "phases"]


def merge_upsample_conv(model: ModelProto, *, form: Form = "transposed") -> PassResult:
    """Replace nearest ×2 Resize (or Upsample) followed by Conv by one operator on the small tensor.

    `transposed` gives ConvTranspose of stride 2, whose gradient is a Conv of stride 2. `phases`
    gives a 2x2 Conv to 4 M channels, DepthToSpace and a crop by one pixel: for engines whose
    ConvTranspose is slow (3x3, padding 1, two spatial dimensions, group 1).

    Requires: doubling of every spatial dimension and of no other; Conv of stride 1 and dilation 1
    with constant weight and padding below the kernel size, the only reader of the doubled tensor.
    Run it before differentiation: the gradient then has the merged form as well.
    Ensures: the same outputs up to rounding; the doubled tensor is never made.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named("Resize", "Upsample"):
        reason = _merge(view, node, form)
        if reason:
            reasons.append(f"{label(node)}: {reason}")
        else:
            changed += 1
    return view.result(changed, reasons)


def with_form(form: Form) -> Pass:
    """`merge_upsample_conv` with a form, for a list of passes."""
    return partial(merge_upsample_conv, form=form)


def _merge(view: GraphView, resize: NodeProto, form: Form) -> str:
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
    if form == "phases" and (weight.shape[2:] != (3, 3) or set(pads) != {1} or settings.group != 1):
        return f"{label(conv)} is not 3x3 with padding 1 and one group, which 'phases' needs"
    write = _write_phases if form == "phases" else _write_transposed
    nodes = write(view, resize.input[0], conv, weight, pads, settings.group)
    view.replace(conv, *nodes)
    view.replace(resize)
    return ""


def _write_transposed(
    view: GraphView, data: str, conv: NodeProto, weight: NDArray[Any], pads: list[int], group: int
) -> list[NodeProto]:
    kernel = view.add_constant(f"{conv.input[1]}_merged", doubled_kernel(weight, group))
    sizes = weight.shape[2:]
    node = view.node(
        "ConvTranspose",
        [data, kernel, *conv.input[2:]],
        list(conv.output),
        group=group,
        kernel_shape=[k + 1 for k in sizes],
        pads=[k - 1 - p for k, p in zip(sizes * 2, pads, strict=True)],
        strides=[2] * len(sizes),
    )
    return [node]


def _write_phases(
    view: GraphView, data: str, conv: NodeProto, weight: NDArray[Any], pads: list[int], group: int
) -> list[NodeProto]:
    kernel = view.add_constant(f"{conv.input[1]}_phases", phase_kernels(weight))
    inputs = [data, kernel]
    if len(conv.input) > 2 and conv.input[2]:
        bias = view.constant(conv.input[2])
        if bias is not None:
            inputs.append(view.add_constant(f"{conv.input[2]}_phases", np.tile(bias, 4)))
    out = conv.output[0]
    wide, shuffled = view.fresh(f"{out}_phases"), view.fresh(f"{out}_shuffled")
    crop = [
        view.add_constant(f"{out}_crop", np.array(v, np.int64)) for v in ([1, 1], [-1, -1], [2, 3])
    ]
    return [
        view.node("Conv", inputs, [wide], kernel_shape=[2, 2], pads=[1] * 4, strides=[1, 1]),
        view.node("DepthToSpace", [wide], [shuffled], blocksize=2, mode="DCR"),
        view.node("Slice", [shuffled, *crop], [out]),
    ]


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


def phase_kernels(weight: NDArray[Any]) -> NDArray[Any]:
    """Weight (M, C, 3, 3) of a Conv after doubling, as (4 M, C, 2, 2): odd rows and columns first.

    Behind a padding of 1, row r of the wide tensor sees x[r - 1] and x[r] and holds output rows
    2 r - 1 (odd: w0 + w1, w2) and 2 r (even: w0, w1 + w2); cropping one row aligns them.
    """
    rows = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float64)  # parity, tap, k
    kernels = np.einsum("aik,bjl,mckl->abmcij", rows, rows, weight.astype(np.float64))
    return np.ascontiguousarray(kernels.reshape(-1, weight.shape[1], 2, 2).astype(weight.dtype))


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
