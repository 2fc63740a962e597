"""Relabel a graph as one of opset 22, whose convolutions and poolings take bfloat16."""

from __future__ import annotations

from onnx import ModelProto

from unblemish.export.gradient.normalise import convert, default_opset
from unblemish.export.passes.result import PassResult

BFLOAT16_OPSET = 22


def lift_opset(model: ModelProto) -> PassResult:
    """Bring a model to opset 21, then to 22, which widens element types and changes nothing else.

    Raises: ModelError where the conversion to opset 21 fails.
    """
    lifted = ModelProto()
    lifted.CopyFrom(model)
    opset = default_opset(lifted)
    if opset >= BFLOAT16_OPSET:
        return PassResult(lifted, 0, [f"it is of opset {opset} already"])
    lifted = convert(lifted, opset)
    for entry in lifted.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = BFLOAT16_OPSET
    return PassResult(lifted, 1, [])
