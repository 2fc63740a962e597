"""What an operator of the torch executor is, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Tensor = torch.Tensor
Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}


@dataclass(frozen=True)
class TorchNode:
    """One ONNX node: attributes as plain Python values, tensors as torch tensors.

    `dtype` replaces every floating type the graph names (Cast, ConstantOfShape, ...), where given.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    attributes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default` where absent."""
        return self.attributes.get(name, default)

    def ints(self, name: str, given: Tensor | None = None) -> list[int] | None:
        """Integers stated as an input (`given`) or as attribute `name`; None where absent."""
        if given is not None:
            return [int(v) for v in given.reshape(-1).tolist()]
        value = self.attributes.get(name)
        return None if value is None else [int(v) for v in value]


def op(*op_types: str) -> Callable[[Operator], Operator]:
    """Register `function(node, *inputs)`, returning a tensor or a tuple of them, for operators."""

    def register(function: Operator) -> Operator:
        for op_type in op_types:
            if op_type in OPERATORS:
                raise ValueError(f"two torch implementations of {op_type}")
            OPERATORS[op_type] = function
        return function

    return register


def register_all(table: dict[str, Callable[..., Any]]) -> None:
    """Register torch functions of the inputs alone, without attributes."""
    for op_type, function in table.items():
        op(op_type)(_plain(function))


def _plain(function: Callable[..., Any]) -> Operator:
    def run(node: TorchNode, *inputs: Tensor) -> Any:
        return function(*inputs)

    return run


# TensorProto.DataType numbers -> torch.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def torch_dtype(number: int, override: torch.dtype | None) -> torch.dtype:
    """Torch type of an ONNX element type; floating ones become `override` where given.

    Raises: ModelError for a type that torch lacks.
    """
    from unblemish.errors import ModelError

    if number not in DTYPES:
        raise ModelError(
            f"element type {number} of ONNX has no torch counterpart; "
            f"expected one of {sorted(DTYPES)}. Cast the tensor to a supported type in the graph."
        )
    dtype = DTYPES[number]
    return override if override is not None and dtype.is_floating_point else dtype
