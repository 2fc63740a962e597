"""Half types: rounding in NumPy, which knows no bfloat16, and tensors of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

NAMES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""Precision of a bundle -> element type of its heavy operators."""


def bits(array: NDArray[Any], element: int) -> NDArray[np.uint16]:
    """The numbers in a half type, as their 16 bits, rounded to the nearest, ties to even.

    bfloat16 is the upper half of a float32: adding 0x7FFF and the lowest bit kept rounds it. NaNs
    keep their sign and become quiet. float16 beyond 65504 becomes infinite.
    """
    wide = np.ascontiguousarray(array, np.float32)
    if element == TensorProto.FLOAT16:
        with np.errstate(over="ignore"):
            return wide.astype(np.float16).view(np.uint16)
    raw = wide.view(np.uint32).astype(np.uint64)
    up = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((raw >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(wide), quiet, up)


def widened(content: NDArray[np.uint16], element: int) -> NDArray[np.float32]:
    """The numbers behind 16 bits, exactly."""
    if element == TensorProto.FLOAT16:
        return content.view(np.float16).astype(np.float32)
    return (content.astype(np.uint32) << 16).view(np.float32)


def rounded(array: NDArray[Any], element: int) -> NDArray[np.float32]:
    """The numbers as a half type holds them, in float32."""
    return widened(bits(array, element), element).reshape(np.shape(array))


def tensor_of(array: NDArray[Any], name: str, element: int) -> TensorProto:
    """An initialiser of a half type."""
    content = bits(array, element).astype("<u2").tobytes()
    return TensorProto(name=name, data_type=element, dims=np.shape(array), raw_data=content)
