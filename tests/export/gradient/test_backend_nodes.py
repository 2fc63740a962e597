"""The standard's own node tests, differentiated: outputs reproduced, gradients against differences.

Fast: two cases of each operator. Slow: all of them, and the function bodies of composite operators.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, parser

from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export import differentiate
from unblemish.export.gradient.rule import RULES
from unblemish.runtime.backends.torch_graph import TorchGraph

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Arrays], list[NDArray[Any]]]

NEWEST = 23
FAST, SAMPLES = 2, 4
# The standard's own tolerance of its node tests, and float16's 11 bits.
FORWARD_TOLERANCE = {"float16": 1e-2, "float32": 1e-3, "float64": 1e-6}
# Differences of step 1e-5 in float64: where the slope itself has a kink the error is of the order
# of the step; else truncation and rounding are 1e-10.
STEP, TOLERANCE = 1e-5, 3e-5
# Left and right slopes that differ by more than curvature explains: a kink, no gradient is right.
KINK = 1e-3
# A change of the value by this much within one step.
JUMP = 1e-2

SETTINGS = {
    ("CastLike", 1), ("Clip", 1), ("Clip", 2), ("Dropout", 1), ("OneHot", 0), ("OneHot", 1),
    ("Range", 1), ("Resize", 1), ("Resize", 2),
}  # fmt: skip
# Up to 64 bits, no 4- and 8-bit floats, no strings; 0: sequences and optionals.
ELEMENT_TYPES = set(range(1, 14)) - {TensorProto.STRING}
# The reference takes scale * length where the engines take the integer length of the result.
KNOWN = {
    "test_reshape_allowzero_reordered": "an empty tensor",
    # Shape inference of opset 21 counts a last window that later opsets and the engines drop.
    "test_averagepool_2d_ceil_last_window_starts_on_pad": "shape inference of opset 21",
    "test_maxpool_2d_ceil_output_size_reduce_by_one": "shape inference of opset 21",
    "test_resize_downsample_scales_linear_align_corners": "the reference samples elsewhere",
    "test_resize_downsample_scales_cubic_align_corners": "the reference samples elsewhere",
}


# Softmax of a row of -inf: the value is repaired afterwards, 0 times NaN is not (nor in torch).
MASKED = ("fullymasked", "nan_robustness", "structural_empty", "mode3_softmax", "gqa_rank4_mask")


@lru_cache(maxsize=1)
def cases() -> dict[str, list[Any]]:
    """Node tests by operator; 'functions' holds those of several nodes."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    table: dict[str, list[Any]] = {}
    for case in sorted(loaded, key=lambda c: str(c.name)):
        if case.model is not None:
            nodes = case.model.graph.node
            table.setdefault(nodes[0].op_type if len(nodes) == 1 else "functions", []).append(case)
    table.setdefault("GlobalLpPool", [_global_lp_pool()])
    return table


def _global_lp_pool() -> Any:
    """The standard has no test of this operator: one of ours."""
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> '
        "g (float[2, 3, 4, 5] x) => (float[2, 3, 1, 1] y) { y = GlobalLpPool<p = 3>(x) }"
    )
    x = np.random.default_rng(2).normal(size=(2, 3, 4, 5)).astype(np.float32)
    y = (np.abs(x) ** 3).sum((2, 3), keepdims=True) ** (1 / 3)
    return SimpleNamespace(name="own_global_lp_pool", model=model, data_sets=[([x], [y])])


class NothingToCheckError(Exception):
    """Why a case says nothing about gradients."""


def prepared(case: Any) -> onnx.ModelProto:
    """The model of a case in a supported opset, or NothingToCheckError."""
    if case.name in KNOWN:
        raise NothingToCheckError(KNOWN[case.name])
    if "bernoulli" in case.name or any(part in case.name for part in MASKED):
        raise NothingToCheckError("random" if "bernoulli" in case.name else "a fully masked row")
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    kinds = {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    if not kinds <= ELEMENT_TYPES:
        raise NothingToCheckError("element types that the engines lack")
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > NEWEST:
            entry.version = NEWEST
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as cause:
        raise NothingToCheckError(f"not valid in opset {NEWEST}") from cause
    return model


def arrays(part: list[Any]) -> list[NDArray[Any]]:
    return [numpy_helper.to_array(a) if isinstance(a, TensorProto) else np.asarray(a) for a in part]


def floating(infos: Any) -> list[str]:
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return [i.name for i in infos if i.type.tensor_type.elem_type in kinds]


def variables(model: onnx.ModelProto) -> list[str]:
    """Floating inputs that are no settings."""
    settings = {
        name
        for n in model.graph.node
        for i, name in enumerate(n.input)
        if (n.op_type, i) in SETTINGS
    }
    return [name for name in floating(model.graph.input) if name not in settings]


def runner(model: onnx.ModelProto) -> Runner:
    """ONNX Runtime; the torch executor where it has no kernel for a type."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    wanted = {i.name for i in model.graph.input}
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    except Exception:
        return _torch_runner(model, wanted)
    return lambda feeds: session.run(None, {n: a for n, a in feeds.items() if n in wanted})


def _torch_runner(model: onnx.ModelProto, wanted: set[str]) -> Runner:
    graph = TorchGraph(model)

    def run(feeds: Arrays) -> list[NDArray[Any]]:
        given = {n: torch.from_numpy(a.copy()) for n, a in feeds.items() if n in wanted}
        with torch.no_grad():
            results = graph(**given)
        return [results[o.name].numpy() for o in model.graph.output]

    return run


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64; scales of Resize stay float32 by the standard."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    fixed = {n.input[i] for n in double.graph.node if n.op_type == "Resize" for i in (1, 2)
             if len(n.input) > i}  # fmt: skip
    # The statistics of LayerNormalization are float32 (stash_type 1).
    fixed |= {
        o for n in double.graph.node if n.op_type == "LayerNormalization" for o in n.output[1:]
    }
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    for info in (*double.graph.input, *double.graph.output):
        if info.type.tensor_type.elem_type in kinds and info.name not in fixed:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in double.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in kinds:
                attribute.i = TensorProto.DOUBLE
            if attribute.HasField("t") and attribute.t.data_type in kinds:
                wide = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(numpy_helper.from_array(wide))
    return double


def differentiated(model: onnx.ModelProto, wrt: list[str]) -> onnx.ModelProto:
    """The fused graph; of the first output alone where others (statistics) have no rule."""
    try:
        return differentiate(model, wrt).fused
    except UnsupportedOperatorError:
        if len(model.graph.output) == 1:
            raise
        return differentiate(model, wrt, [model.graph.output[0].name]).fused


def check_forward(case: Any, model: onnx.ModelProto, wrt: list[str]) -> None:
    """The fused graph gives the expected outputs."""
    fused = differentiated(model, wrt)
    given, expected = (arrays(part) for part in case.data_sets[0])
    feeds = dict(zip((i.name for i in model.graph.input), given, strict=True))
    wanted = dict(zip((o.name for o in model.graph.output), expected, strict=True))
    cotangents = {i.name: wanted[i.name[3:]] for i in fused.graph.input if i.name.startswith("ct_")}
    found = dict(
        zip(
            (o.name for o in fused.graph.output),
            runner(fused)({**feeds, **cotangents}),
            strict=True,
        )
    )
    for name, value in wanted.items():
        tolerance = FORWARD_TOLERANCE.get(value.dtype.name, 0.0)
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def check_differences(case: Any, model: onnx.ModelProto, wrt: list[str]) -> int:
    """Gradients of sampled elements in float64; returns how many were differentiable there."""
    double = widened(model)
    fused, function = differentiated(double, wrt), runner(double)
    feeds = dict(
        zip((i.name for i in double.graph.input), arrays(case.data_sets[0][0]), strict=True)
    )
    for info in double.graph.input:
        if info.type.tensor_type.elem_type == TensorProto.DOUBLE:
            wide = feeds[info.name].astype(np.float64)
            feeds[info.name] = np.where(np.isfinite(wide), wide, 0.5)
    names = [o.name for o in double.graph.output]
    values = dict(zip(names, function(feeds), strict=True))
    rng = np.random.default_rng(5)
    cotangents = {
        i.name: np.asarray(rng.normal(size=values[i.name[3:]].shape))
        for i in fused.graph.input if i.name.startswith("ct_")
    }  # fmt: skip
    grads = dict(
        zip(
            (o.name for o in fused.graph.output),
            runner(fused)({**feeds, **cotangents}),
            strict=True,
        )
    )

    def value(changed: Arrays) -> float:
        results = dict(zip(names, function(changed), strict=True))
        if any(results[n[3:]].shape != ct.shape for n, ct in cotangents.items()):
            return float("nan")  # the length of a Range jumps
        return sum(float(np.vdot(ct, results[n[3:]])) for n, ct in cotangents.items())

    centre, checked = value(feeds), 0
    for name in wrt:
        size = feeds[name].size
        for place in rng.permutation(size)[:SAMPLES]:
            slopes = [
                (value(_moved(feeds, name, place, s * STEP)) - centre) / (s * STEP) for s in (1, -1)
            ]
            found = float(grads[f"grad_{name}"].reshape(-1)[place])
            scale = max(1.0, abs(slopes[0]), abs(slopes[1]))
            jumps = scale * STEP > JUMP or not np.isfinite(slopes).all()
            if jumps or abs(slopes[0] - slopes[1]) > KINK * scale:
                continue
            checked += 1
            error = abs(found - (slopes[0] + slopes[1]) / 2) / scale
            assert error <= TOLERANCE, f"{name}[{place}]: {found}, differences {slopes}"
    return checked


def _moved(feeds: Arrays, name: str, place: int, step: float) -> Arrays:
    moved = feeds[name].copy()
    moved.reshape(-1)[place] += step
    return {**feeds, name: moved}


def examine(case: Any) -> str:
    """Check one case: 'checked', or why not. Raises: AssertionError where it fails."""
    try:
        model = prepared(case)
        wrt = variables(model)
        if not wrt or not floating(model.graph.output):
            raise NothingToCheckError("no floating path")
        try:
            check_forward(case, model, wrt)
            return "checked" if check_differences(case, model, wrt) else "a kink at every sample"
        except UnsupportedOperatorError as cause:
            raise NothingToCheckError(f"refused: {_short(cause)}") from cause
        except ModelError as cause:
            # Axes computed in the graph: inference does not know the rank of what they reduce.
            if "rank of" in str(cause) or "Field 'shape'" in str(cause):
                raise NothingToCheckError("refused: a value of unknown rank") from cause
            raise
    except NothingToCheckError as reason:
        return str(reason)


def _short(error: Exception) -> str:
    return str(error).split(": ", 1)[-1].split(";")[0][:90]


def examined(
    operator: str, limit: int | None, record: Callable[[str, object], None]
) -> Counter[str]:
    """Outcomes of an operator's cases; the first `limit` that can be checked."""
    outcomes: Counter[str] = Counter()
    failures = []
    for case in cases().get(operator, []):
        if limit is not None and outcomes["checked"] >= limit:
            break
        try:
            outcomes[examine(case)] += 1
        except (AssertionError, ModelError) as error:
            failures.append(f"{case.name}: {type(error).__name__}: {str(error).strip()[:400]}")
    record("operator", operator)
    record("outcomes", dict(outcomes))
    assert not failures, "\n".join(failures)
    return outcomes


@pytest.mark.parametrize("operator", sorted(RULES))
def test_node_tests_of_each_operator(
    operator: str, record_property: Callable[[str, object], None]
) -> None:
    outcomes = examined(operator, FAST, record_property)
    if not outcomes["checked"]:
        pytest.skip(f"no node test to check: {dict(outcomes)}")


@pytest.mark.slow
@pytest.mark.parametrize("operator", sorted(RULES))
def test_all_node_tests_of_each_operator(
    operator: str, record_property: Callable[[str, object], None]
) -> None:
    outcomes = examined(operator, None, record_property)
    if not outcomes["checked"]:
        pytest.skip(f"no node test to check: {dict(outcomes)}")


@pytest.mark.slow
def test_function_bodies_of_the_node_tests(record_property: Callable[[str, object], None]) -> None:
    outcomes = examined("functions", None, record_property)
    assert outcomes["checked"] > 100, outcomes


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float16."""
    half = widened(model)
    for info in (*half.graph.input, *half.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.DOUBLE:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.DOUBLE:
                narrow = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(narrow))
    return half


@pytest.mark.parametrize("operator", sorted(RULES))
def test_float16_graphs_of_each_operator_are_valid(operator: str) -> None:
    valid = 0
    for case in cases().get(operator, []):
        try:
            model = halved(prepared(case))
            onnx.checker.check_model(model, full_check=True)
            fused = differentiated(model, variables(model))
        except (NothingToCheckError, UnsupportedOperatorError, ModelError):
            continue
        except onnx.shape_inference.InferenceError:
            continue  # the operator is not defined for float16
        onnx.checker.check_model(fused, full_check=True)
        inputs = {i.name: i.type.tensor_type.elem_type for i in fused.graph.input}
        outputs = {o.name: o.type.tensor_type.elem_type for o in fused.graph.output}
        assert all(t == inputs[n[5:]] for n, t in outputs.items() if n.startswith("grad_"))
        valid += 1
        if valid == FAST:
            return
    if not valid:
        pytest.skip("no node test in float16")
