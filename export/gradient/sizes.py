"""Symbolic sizes as multiples, so that strided graphs stay exact where sizes are open.

A dimension named '16*height' says: sixteen times a whole number. A convolution of stride 2 with
matching pads halves it to '8*height' whatever the number is, which ONNX's own inference, for which
a name is only a name, does not know. What is no multiple stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from unblemish.export.gradient.types import Dim

_MULTIPLE = re.compile(r"(\d+)\*(\w+)")
_POOLS = ("Conv", "MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True)
class Multiple:
    """`factor` times the whole number called `unit`."""

    factor: int
    unit: str

    @property
    def dim(self) -> str:
        """As a name of a dimension."""
        return self.unit if self.factor == 1 else f"{self.factor}*{self.unit}"


def multiple(dim: Dim) -> Multiple | None:
    """Read a symbolic dimension; None for numbers and for what is not known."""
    if not isinstance(dim, str):
        return None
    found = _MULTIPLE.fullmatch(dim)
    return Multiple(int(found[1]), found[2]) if found else Multiple(1, dim)


def difference(first: Dim, times: int, second: Dim) -> int | None:
    """times * first - second, where that is known to be a number."""
    if isinstance(first, int) and isinstance(second, int):
        return times * first - second
    a, b = multiple(first), multiple(second)
    if a is None or b is None or a.unit != b.unit or times * a.factor != b.factor:
        return None
    return 0


def sizes_behind(
    node: onnx.NodeProto, dims: Sequence[Dim], kernel: Sequence[Dim], scales: Sequence[float] | None
) -> tuple[Dim, ...] | None:
    """Spatial sizes behind a window or a Resize; None entries where they are no multiples.

    Args:
        dims: of the first input. kernel: spatial sizes of the second, for convolutions.
        scales: of a Resize, per axis of the input, where constant.
    Returns: None for other operators.
    """
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Resize":
        if scales is None or len(scales) != len(dims) or attributes.get("axes"):
            return None
        return tuple(_scaled(d, s) for d, s in zip(dims[2:], scales[2:], strict=True))
    if node.op_type not in (*_POOLS, "ConvTranspose"):
        return None
    sides = attributes.get("kernel_shape") or [k for k in kernel if isinstance(k, int)]
    given = attributes.get("ceil_mode") or attributes.get("output_shape")
    if len(sides) != len(dims) - 2 or given:
        return None
    step = _transposed if node.op_type == "ConvTranspose" else _strided
    return tuple(
        step(size, *window)
        for size, window in zip(dims[2:], _windows(attributes, sides), strict=True)
    )


def _windows(attributes: dict[str, Any], sides: Sequence[int]) -> list[tuple[int, int, int]]:
    """(extent, stride, pads of both ends less output padding) of each axis; SAME as its pads."""
    rank = len(sides)
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    pads = attributes.get("pads") or [0] * 2 * rank
    more = attributes.get("output_padding") or [0] * rank
    extents = [(k - 1) * d + 1 for k, d in zip(sides, dilations, strict=True)]
    mode = attributes.get("auto_pad", b"NOTSET")
    around = [pads[i] + pads[i + rank] - more[i] for i in range(rank)]
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        around = [e - s for e, s in zip(extents, strides, strict=True)]
    elif mode == b"VALID":
        around = [0] * rank
    return list(zip(extents, strides, around, strict=True))


def _strided(size: Dim, extent: int, stride: int, around: int) -> Dim:
    """floor((size + around - extent) / stride) + 1."""
    known = multiple(size)
    if known is None or known.factor % stride or (around - extent) // stride != -1:
        return None
    return Multiple(known.factor // stride, known.unit).dim


def _transposed(size: Dim, extent: int, stride: int, around: int) -> Dim:
    """stride (size - 1) + extent - around."""
    known = multiple(size)
    if known is None or extent - around != stride:
        return None
    return Multiple(known.factor * stride, known.unit).dim


def _scaled(size: Dim, scale: float) -> Dim:
    """floor(size * scale), exact for whole scales and their reciprocals where they divide."""
    known = multiple(size)
    if known is None:
        return None
    product = known.factor * scale
    exact: Callable[[float], bool] = float.is_integer
    if not exact(float(product)) or not (exact(float(scale)) or exact(1.0 / float(scale))):
        return None
    return Multiple(int(product), known.unit).dim
