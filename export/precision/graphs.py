"""The graphs of a bundle in another precision, forward and backward in agreement."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import onnx
from onnx import ModelProto, TensorProto

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ModelError
from unblemish.export.gradient.lighten import lightened
from unblemish.export.precision.elements import NAMES
from unblemish.export.precision.emulate import emulate
from unblemish.export.precision.half import halve
from unblemish.export.precision.lift_opset import BFLOAT16_OPSET, lift_opset
from unblemish.export.precision.scale_cotangents import scale_cotangents


def half_graphs(
    graphs: Mapping[GraphRole, ModelProto], precision: str
) -> dict[GraphRole, ModelProto]:
    """Graphs by role in 'fp16' or 'bf16', a forward graph and its way back with one set of types.

    Forward graphs come before their way back.

    What float16 graphs keep for the way back is handed over as it is computed, in half; bfloat16 is
    widened, since NumPy cannot hold it.

    Raises: ModelError where a rewritten graph breaks the ONNX specification.
    """
    element = NAMES[precision]
    made: dict[GraphRole, ModelProto] = {}
    for role, model in graphs.items():
        stem, _, way = role.rpartition("_")
        if way == "backward":
            there = _half_outputs(made.get(_role(f"{stem}_forward")), element)
            made[role] = half_graph(model, precision, half_inputs=there)
        else:
            back = graphs.get(_role(f"{stem}_backward")) if way == "forward" else None
            made[role] = half_graph(model, precision, may_be_half=_kept(model, back, precision))
    return made


def half_graph(
    model: ModelProto,
    precision: str,
    *,
    half_inputs: Collection[str] = (),
    may_be_half: Collection[str] = (),
) -> ModelProto:
    """One graph in 'fp16' or 'bf16', forward, backward or fused; see `halve`."""
    element = NAMES[precision]
    if element == TensorProto.FLOAT16:
        model = scale_cotangents(lift_opset(model).model).model
    else:
        model = lift_opset(model, BFLOAT16_OPSET).model
    made = halve(model, element, half_inputs=half_inputs, may_be_half=may_be_half).model
    return checked(made, precision)


def emulated(graphs: Mapping[GraphRole, ModelProto], precision: str) -> dict[GraphRole, ModelProto]:
    """The graphs with the roundings of the precision, in float32: what a parity gate runs."""
    if precision not in NAMES:
        return dict(graphs)
    return {role: emulate(model, NAMES[precision]).model for role, model in graphs.items()}


def _kept(forward: ModelProto, backward: ModelProto | None, precision: str) -> set[str]:
    """Outputs of a forward graph for the way back alone, where half may stay half."""
    if backward is None or precision == "bf16":
        return set()
    read = {value.name for value in backward.graph.input}
    outputs = {value.name for value in forward.graph.output}
    return {name for name in outputs & read if f"ct_{name}" not in read}


def checked(model: ModelProto, precision: str) -> ModelProto:
    """The graph. Raises: ModelError where it is not of one type throughout, or no valid ONNX."""
    try:
        light = lightened(model)[0]
        onnx.checker.check_model(light)
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the graph cannot be brought to {precision}: {error}. Nothing was written; export "
            "with --precision fp32, and please report the model."
        ) from error
    return model


def _role(name: str) -> GraphRole:
    return cast(GraphRole, name)


def _half_outputs(model: ModelProto | None, element: int) -> set[str]:
    if model is None:
        return set()
    return {v.name for v in model.graph.output if v.type.tensor_type.elem_type == element}
