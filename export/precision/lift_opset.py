"""Bring a graph to an opset that half types want."""

from __future__ import annotations

from onnx import ModelProto

from unblemish.export.gradient.normalise import WORKING_OPSET, convert, default_opset
from unblemish.export.passes.result import PassResult

BFLOAT16_OPSET = 22
"""Its convolutions and poolings take bfloat16; it widens element types and changes nothing else."""


def lift_opset(model: ModelProto, least: int = WORKING_OPSET) -> PassResult:
    """Convert a model to the working opset, and relabel it as one of 22 where that is asked for.

    Raises: ModelError where the conversion fails.
    """
    lifted = ModelProto()
    lifted.CopyFrom(model)
    opset = default_opset(lifted)
    if opset >= least:
        return PassResult(lifted, 0, [f"it is of opset {opset} already"])
    lifted = convert(lifted, opset)
    for entry in lifted.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = least
    return PassResult(lifted, 1, [])
