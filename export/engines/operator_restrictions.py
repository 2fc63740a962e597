"""What TensorRT's ONNX parser asks of single operators, beyond their element types.

A restriction gives the reason of a refusal, or None. Source: the column 'Restrictions' of the
documentation named in operator_support.json; for 10.1 also the checks of the parser itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from unblemish.export.passes.graph_view import GraphView

Version = tuple[int, int]
Restriction = Callable[[GraphView, NodeProto, Version], str | None]

_RESIZE_MODES = ("nearest", "linear")
_RESIZE_PLACES = (
    "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
)  # fmt: skip
_RESIZE_ROUNDING = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
_TOP_K = 3840


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _constant(position: int, what: str) -> Restriction:
    """The restriction that an input, where it is given, is known when the engine is built."""

    def check(view: GraphView, node: NodeProto, _: Version) -> str | None:
        given = len(node.input) > position and node.input[position]
        if given and not view.is_constant(node.input[position]):
            return f"its {what} must be constant, and '{node.input[position]}' is computed"
        return None

    return check


def _before(version: Version, restriction: Restriction) -> Restriction:
    """A restriction that a later version dropped."""
    return lambda view, node, found: restriction(view, node, found) if found < version else None


def _all(*restrictions: Restriction) -> Restriction:
    def check(view: GraphView, node: NodeProto, version: Version) -> str | None:
        return next(filter(None, (r(view, node, version) for r in restrictions)), None)

    return check


def _spatial(view: GraphView, node: NodeProto, _: Version) -> str | None:
    shape = view.shape(node.input[0])
    if shape is not None and len(shape) not in (4, 5):
        return f"expected two or three spatial axes, found data of rank {len(shape)}"
    if any(d != 1 for d in _attribute(node, "dilations", [])):
        return "dilations other than 1 are not supported"
    return None


def _one_output(view: GraphView, node: NodeProto, _: Version) -> str | None:
    more = [name for name in node.output[1:] if name]
    return f"its further outputs ({', '.join(more)}) are not supported" if more else None


def _kernel(view: GraphView, node: NodeProto, _: Version) -> str | None:
    """The kernel's own shape has to be known, and with it the number of channels."""
    data, kernel = view.shape(node.input[0]), view.shape(node.input[1])
    if data is not None and not 3 <= len(data) <= 5:
        return f"expected one to three spatial axes, found data of rank {len(data)}"
    if kernel is not None and not all(isinstance(d, int) for d in kernel):
        return f"the shape of its kernel must be known, found {kernel}"
    if data is not None and not isinstance(data[1], int):
        return f"the number of its channels must be known, found data of shape {data}"
    return None


def _zero_point(view: GraphView, node: NodeProto, _: Version) -> str | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    value = view.constant(node.input[2])
    if value is None or np.any(value.view(np.uint8) != 0):
        return "its zero point must be a constant 0"
    return None


def _resize(view: GraphView, node: NodeProto, _: Version) -> str | None:
    checks = (
        ("mode", "nearest", _RESIZE_MODES),
        ("coordinate_transformation_mode", "half_pixel", _RESIZE_PLACES),
        ("nearest_mode", "round_prefer_floor", _RESIZE_ROUNDING),
        ("keep_aspect_ratio_policy", "stretch", ("stretch",)),
    )
    for name, default, allowed in checks:
        found = _attribute(node, name, default)
        if found not in allowed:
            return f"{name} '{found}' is not supported, expected one of {', '.join(allowed)}"
    return "antialiasing is not supported" if _attribute(node, "antialias", 0) else None


def _no_reduction(view: GraphView, node: NodeProto, version: Version) -> str | None:
    reduction = _attribute(node, "reduction", "none")
    # The oldest parser refuses the attribute whatever its value.
    given = any(a.name == "reduction" for a in node.attribute)
    if reduction != "none" or (given and version < (10, 15)):
        return f"reduction '{reduction}' is not supported"
    return None


def _top_k(view: GraphView, node: NodeProto, _: Version) -> str | None:
    count = view.constant(node.input[1])
    if count is not None and int(count.reshape(-1)[0]) >= _TOP_K:
        return f"k must be less than {_TOP_K}, found {int(count.reshape(-1)[0])}"
    return None if _attribute(node, "sorted", 1) else "sorted must be 1"


def _four_axes(view: GraphView, node: NodeProto, _: Version) -> str | None:
    shape = view.shape(node.input[0])
    if shape is not None and len(shape) != 4:
        return f"expected data of rank 4, found rank {len(shape)}"
    return None


def _given_axes(view: GraphView, node: NodeProto, _: Version) -> str | None:
    """Without axes they are those of length 1, which symbolic dimensions do not tell."""
    shape = view.shape(node.input[0])
    named = len(node.input) > 1 and node.input[1]
    if not named and shape is not None and not all(isinstance(d, int) for d in shape):
        return f"its axes must be given where the data has symbolic dimensions, found {shape}"
    return None


_POOL = _all(_spatial, _one_output)
_REDUCE = _constant(1, "axes")

RESTRICTIONS: dict[str, Restriction] = {
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
         "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        _REDUCE,
    ),
    "AveragePool": _POOL,
    "MaxPool": _POOL,
    "Conv": _kernel,
    "ConvTranspose": _kernel,
    "CumSum": _constant(1, "axis"),
    "DepthToSpace": _four_axes,
    "DequantizeLinear": _zero_point,
    "QuantizeLinear": _zero_point,
    "GridSample": _four_axes,
    "LayerNormalization": _one_output,
    "OneHot": _constant(1, "depth"),
    "Pad": _before((10, 15), _constant(3, "axes")),
    "Resize": _resize,
    "ScatterND": _no_reduction,
    "Slice": _before((10, 15), _constant(3, "axes")),
    "Squeeze": _all(_constant(1, "axes"), _given_axes),
    "TopK": _top_k,
    "Unsqueeze": _constant(1, "axes"),
}  # fmt: skip
