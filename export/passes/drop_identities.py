"""Remove operators that hand their input on unchanged."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from unblemish.export.passes.graph_view import GraphView, attributes_of, label
from unblemish.export.passes.result import PassResult

NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}
OFTEN_NEUTRAL = (
    "Identity", "Dropout", "Cast", "Transpose", "Reshape", "Expand", "Pad",
    "Concat", "Sum", "Max", "Min", *NEUTRAL,
)  # fmt: skip


def drop_identities(model: ModelProto) -> PassResult:
    """Remove nodes whose output equals their first input.

    Identity; Dropout at inference; Cast to the type it already has; Transpose in natural order;
    Reshape and Expand to the static shape it already has; Pad by nothing; Concat, Sum, Max and Min
    of one tensor; adding or subtracting 0, multiplying or dividing by 1, the first power.

    Requires: nothing; types and shapes come from ONNX shape inference.
    Ensures: the same outputs bit for bit (but -0 + 0, which becomes -0); the
    interface keeps its names.
    """
    view = GraphView(model)
    changed, reasons = 0, []
    for node in view.named(*OFTEN_NEUTRAL):
        if not _is_neutral(view, node):
            continue
        if any(view.users(name) for name in node.output[1:]) or set(node.output[1:]) & view.outputs:
            reasons.append(f"{label(node)}: its further outputs are used")
        elif view.bypass(node):
            changed += 1
        else:
            reasons.append(
                f"{label(node)}: its names belong to inputs, outputs or constants of the graph"
            )
    return view.result(changed, reasons)


def _is_neutral(view: GraphView, node: NodeProto) -> bool:
    op, attributes = node.op_type, attributes_of(node)
    if op == "Identity":
        return True
    if op == "Dropout":
        return _is_inference_dropout(view, node)
    if op in ("Concat", "Sum", "Max", "Min"):
        return len(node.input) == 1
    if op == "Cast":
        dtype = view.dtype(node.input[0])
        return (
            dtype is not None
            and helper.np_dtype_to_tensor_dtype(dtype) == attributes["to"] != TensorProto.UNDEFINED
        )
    if op == "Transpose":
        perm = attributes.get("perm")
        return perm is not None and perm == list(range(len(perm)))
    if op == "Pad":
        pads = (
            view.constant(node.input[1])
            if len(node.input) > 1
            else np.asarray(attributes.get("pads", [1]))
        )
        return pads is not None and not pads.any()
    if op in ("Reshape", "Expand"):
        return _same_static_shape(view, node)
    return _has_neutral_operand(view, node)


def _is_inference_dropout(view: GraphView, node: NodeProto) -> bool:
    if len(node.input) > 2 and node.input[2]:
        training = view.constant(node.input[2])
        return training is not None and not training.any()
    return True


def _same_static_shape(view: GraphView, node: NodeProto) -> bool:
    before, after = view.shape(node.input[0]), view.shape(node.output[0])
    # One symbolic dimension of the same name is the same number; an unknown one may be anything.
    return before is not None and before == after and None not in before


def _has_neutral_operand(view: GraphView, node: NodeProto) -> bool:
    if len(node.input) != 2 or not view.is_constant(node.input[1]):
        return False
    value = view.constant(node.input[1])
    shape = view.shape(node.input[0])
    if value is None or shape is None or not np.all(value == NEUTRAL.get(node.op_type, np.nan)):
        return False
    after = view.shape(node.output[0])
    return value.ndim <= len(shape) and (value.size == 1 or (after == shape and None not in shape))
