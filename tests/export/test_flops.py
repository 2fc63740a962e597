"""Costs against counts by hand."""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from unblemish.export.flops import cost, kept_bytes


def _model(body: str, inputs: str, output: str, constants: str = "") -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    return parser.parse_model(f"{head} g ({inputs}) => ({output}) {constants} {{{body}}}")


@pytest.mark.parametrize(
    ("body", "inputs", "output", "expected"),
    [
        # 2 x outputs x inner length
        ("y = MatMul(x, w)", "float[N, 3] x, float[3, 5] w", "float[N, 5] y", 2 * 3 * 5),
        ("y = Gemm<transA = 1>(x, w)", "float[3, 2] x, float[3, 5] w", "float[2, 5] y", 60),
        # 2 x output pixels x weights
        ("y = Conv<pads = [1,1,1,1]>(x, w)", "float[N, 2, 4, 6] x, float[5, 2, 3, 3] w",
         "float[N, 5, 4, 6] y", 2 * 24 * 90),
        ("y = Conv<group = 2>(x, w)", "float[N, 2, 4, 6] x, float[4, 1, 1, 1] w",
         "float[N, 4, 4, 6] y", 2 * 24 * 4),
        # 2 x input pixels x weights
        ("y = ConvTranspose<strides = [2,2]>(x, w)", "float[N, 2, 3, 3] x, float[2, 5, 2, 2] w",
         "float[N, 5, 6, 6] y", 2 * 9 * 40),
        ("y = Relu(x)", "float[N, 7] x", "float[N, 7] y", 7),
        ("y = ReduceSum(x)", "float[N, 7] x", "float y", 7),
        ("y = Transpose(x)", "float[N, 7] x", "float[7, N] y", 0),
    ],
)  # fmt: skip
def test_cost_counts_what_a_person_counts(
    body: str, inputs: str, output: str, expected: int
) -> None:
    assert cost(_model(body, inputs, output)).flops == expected


def test_cost_counts_weights() -> None:
    model = _model("y = Add(x, b)", "float[N, 3] x", "float[N, 3] y", "<float[3] b = {1, 2, 3}>")
    assert cost(model).parameters == 3


def test_kept_bytes_follow_the_types() -> None:
    model = _model(
        "m = Greater(x, zero) y = Relu(x)", "float[N, 8] x", "bool[N, 8] m, float[N, 8] y",
        "<float zero = {0}>",
    )  # fmt: skip
    assert kept_bytes(model, ["m"]) == 8
    assert kept_bytes(model, ["m", "y"]) == 8 + 32


def test_cost_runs_the_graph_where_inference_cannot_tell_a_shape() -> None:
    body = "c = Cast<to = 7>(k) r = Reshape(x, c) p = MatMul(r, w) y = ReduceSum(p)"
    constants = "<float[2] k = {2, 3}, float[3, 1] w = {1, 1, 1}>"
    model = _model(body, "float[6] x", "float y", constants)
    # 2 x outputs x inner length, and the sum of two elements.
    assert cost(model).flops == 2 * 2 * 3 + 2
