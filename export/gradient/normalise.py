"""Bring a model to the working form: one opset, no functions, constants lifted, types known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner
from onnx import helper, numpy_helper, version_converter

from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export.gradient.lighten import lightened, restore
from unblemish.export.gradient.types import Value, from_type
from unblemish.export.keep_batch import keep_batch
from unblemish.export.scale_resizes import infer_resized, scale_resizes

WORKING_OPSET = 21
"""The opset of every graph that leaves the engine: the newest that all supported engines run."""

OLDEST, NEWEST = 9, 23
IR_VERSION = 10
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_STANDARD = ("", "ai.onnx")

# Operators whose newest version up to opset 23 widens the element types of the one in opset 21 and
# changes nothing else: a model of opset 22 or 23 that uses no others is a model of opset 21.
_LATER = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding"})


@dataclass
class WorkingGraph:
    """A model in the working form, and what shape inference knows of its values."""

    name: str
    nodes: list[onnx.NodeProto]
    initialisers: dict[str, onnx.TensorProto]
    inputs: list[onnx.ValueInfoProto]  # without initialisers
    outputs: list[onnx.ValueInfoProto]
    values: dict[str, Value]


def normalise(model: onnx.ModelProto, expand: frozenset[str] = frozenset()) -> WorkingGraph:
    """Inline functions, convert to the working opset, lift constants, infer shapes.

    Args:
        model: a checked model; it is changed.
        expand: operators of the default domain to replace by the function the standard defines.
    Returns: the working form; its tensors are shared with `model`.
    Raises: ModelError when the opset is outside 9–23 or a conversion fails;
        UnsupportedOperatorError for control flow and for operators outside the ONNX standard.
    """
    opset = default_opset(model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model, convert_version=True)
    _refuse_foreign(model, opset)
    model = convert(model, opset)
    _write_defaults(model.graph)
    if expand:
        model = _expand(model, expand)
    _lift_constants(model.graph)
    model = _keep_shapes(model)
    return _working(_inferred(model), model)


def default_opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set; ModelError outside the supported range."""
    versions = [e.version for e in model.opset_import if e.domain in _STANDARD]
    if not versions or not OLDEST <= versions[0] <= NEWEST:
        raise ModelError(
            f"expected a model of ONNX opset {OLDEST} to {NEWEST}, found {versions or 'none'}; "
            f"export it again with opset {WORKING_OPSET}, or convert it with onnx.version_converter"
        )
    return int(versions[0])


def _refuse_foreign(model: onnx.ModelProto, opset: int) -> None:
    for node in model.graph.node:
        where = f"node '{node.name or node.output[0]}' ({node.op_type}, opset {opset})"
        if node.op_type in CONTROL_FLOW:
            raise UnsupportedOperatorError(
                f"{where} is control flow, which has no gradient rule; export the model with fixed "
                "control flow (trace it), or fold the condition with a simplifier first"
            )
        if node.domain not in _STANDARD:
            raise UnsupportedOperatorError(
                f"{where} belongs to domain '{node.domain}', expected a standard ONNX operator or "
                "a model-local function; export the model without engine-specific operators"
            )


def convert(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Bring a model without functions to the working opset."""
    if opset > WORKING_OPSET:
        return _relabelled(model, opset)
    if opset < WORKING_OPSET:
        light, heavy = lightened(model)
        try:
            converted = version_converter.convert_version(light, WORKING_OPSET)
        except Exception as cause:  # the converter raises RuntimeError and its own types
            raise ModelError(
                f"the model cannot be converted from opset {opset} to {WORKING_OPSET}: {cause}; "
                f"export it again with opset {WORKING_OPSET}"
            ) from cause
        restore(converted, heavy)
        if opset <= 10:
            _keep_old_resize(converted.graph)
        model = converted
    model.ir_version = IR_VERSION
    return model


def _relabelled(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    for node in model.graph.node:
        if node.op_type in _LATER:
            raise UnsupportedOperatorError(
                f"node '{node.name or node.output[0]}' ({node.op_type}, opset {opset}) does not "
                f"exist in opset {WORKING_OPSET}; export the model with opset {WORKING_OPSET}"
            )
    for entry in model.opset_import:
        if entry.domain in _STANDARD:
            entry.version = WORKING_OPSET
    model.ir_version = IR_VERSION
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as cause:
        raise ModelError(
            f"the model uses features of opset {opset} that opset {WORKING_OPSET} lacks: {cause}"
        ) from cause
    return model


def _keep_old_resize(graph: onnx.GraphProto) -> None:
    """Resize of opset 10 and Upsample sample at x / scale; the converter leaves the new default."""
    for node in graph.node:
        present = {a.name for a in node.attribute}
        if node.op_type == "Resize" and "coordinate_transformation_mode" not in present:
            node.attribute.extend(
                [
                    helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
                    helper.make_attribute("nearest_mode", "floor"),
                ]
            )


def _expand(model: onnx.ModelProto, op_types: frozenset[str]) -> onnx.ModelProto:
    light, heavy = lightened(model)
    expanded = onnx.inliner.inline_selected_functions(
        light, [("", op_type) for op_type in op_types], inline_schema_functions=True
    )
    restore(expanded, heavy)
    return expanded


def _write_defaults(graph: onnx.GraphProto) -> None:
    """Write out defaults that definitions by function refer to: inference and inliner lose them."""
    for node in graph.node:
        schema: Any = onnx.defs.get_schema(node.op_type, WORKING_OPSET, "")
        if not schema.has_function:
            continue
        present = {a.name for a in node.attribute}
        for name, attribute in schema.attributes.items():
            if name not in present and attribute.default_value.name:
                node.attribute.append(attribute.default_value)


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initialisers."""
    kept = []
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        if node.op_type != "Constant" or node.output[0] in outputs:
            kept.append(node)
            continue
        graph.initializer.append(_constant(node))
    del graph.node[:]
    graph.node.extend(kept)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    import numpy as np

    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    kinds = {"value_float": np.float32, "value_floats": np.float32,
             "value_int": np.int64, "value_ints": np.int64}  # fmt: skip
    if attribute.name not in kinds:
        raise UnsupportedOperatorError(
            f"node '{node.name or node.output[0]}' (Constant, opset {WORKING_OPSET}) holds a "
            f"'{attribute.name}', expected a dense numeric tensor; export the model without it"
        )
    return numpy_helper.from_array(np.array(value, dtype=kinds[attribute.name]), node.output[0])


def _keep_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """State what Reshape and Resize keep: else a sum over a broadcast has to ask at run time."""
    if not any(node.op_type in ("Reshape", "Resize") for node in model.graph.node):
        return model
    light, heavy = lightened(model)
    kept = keep_batch(scale_resizes(light))
    restore(kept, heavy)
    return kept


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    light, _ = lightened(model)
    if light is model:
        light = onnx.ModelProto()
        light.CopyFrom(model)
    del light.graph.value_info[:]
    # Inference counts a window that would begin in the right pad, against the standard's text.
    strict = not any(a.name == "ceil_mode" and a.i for n in light.graph.node for a in n.attribute)
    try:
        return infer_resized(light, strict)
    except Exception as cause:
        raise ModelError(
            f"the shapes of the model do not fit together: {cause}; check it with onnx.checker"
        ) from cause


def _working(inferred: onnx.ModelProto, model: onnx.ModelProto) -> WorkingGraph:
    graph = model.graph
    initialisers = {t.name: t for t in graph.initializer}
    infos = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    values = {info.name: from_type(info.type) for info in infos}
    values |= {t.name: Value(t.data_type, tuple(t.dims)) for t in graph.initializer}
    return WorkingGraph(
        name=graph.name or "model",
        nodes=list(graph.node),
        initialisers=initialisers,
        inputs=[i for i in graph.input if i.name not in initialisers],
        outputs=list(graph.output),
        values=values,
    )
