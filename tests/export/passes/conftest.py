"""Models from ONNX text, and their numerical comparison before and after a rewrite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

Array = NDArray[Any]
Parse = Callable[..., ModelProto]
Run = Callable[[ModelProto, dict[str, Array]], list[Array]]
AssertSame = Callable[..., None]

# Weights are combined in float64 and rounded once; sums of at most a few hundred products follow.
RELATIVE = 2e-5


@pytest.fixture
def parse() -> Parse:
    """ModelProto from ONNX text and named weights."""

    def build(text: str, *, opset: int = 17, **weights: Array) -> ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]>\n{text}')
        model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
        onnx.checker.check_model(model, full_check=True)
        return model

    return build


@pytest.fixture
def run() -> Run:
    """Outputs in ONNX Runtime, its own rewrites switched off."""

    def outputs(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options)
        return list(session.run(None, feeds))

    return outputs


@pytest.fixture
def assert_same(run: Run) -> AssertSame:
    """Both models are valid, have one interface, and give the same numbers."""

    def check(
        before: ModelProto, after: ModelProto, *feeds: dict[str, Array], rtol: float = RELATIVE
    ) -> None:
        onnx.checker.check_model(after, full_check=True)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        for one in feeds:
            for want, have in zip(run(before, one), run(after, one), strict=True):
                assert want.dtype == have.dtype
                assert want.shape == have.shape
                scale = float(np.abs(want).max(initial=0)) if want.size else 0.0
                np.testing.assert_allclose(have, want, rtol=rtol, atol=rtol * scale)

    return check


@pytest.fixture
def normal(rng: np.random.Generator) -> Callable[..., Array]:
    """float32 normal numbers of a shape."""

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    return draw


def operators(model: ModelProto) -> list[str]:
    """Operator types in graph order."""
    return [node.op_type for node in model.graph.node]


@pytest.fixture(name="operators")
def operators_fixture() -> Callable[[ModelProto], list[str]]:
    """See `operators`."""
    return operators
