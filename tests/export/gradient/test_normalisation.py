"""Rules of `normalisation.py`, gradients with respect to input, scale, bias and statistics."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import parser

from unblemish.errors import UnsupportedOperatorError
from unblemish.export import differentiate

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
SPACES = ["", ",19", ",5,7", ",H,W", ",3,4,5"]
SIZES = {"N": 3, "H": 5, "W": 1}


@pytest.mark.parametrize("space", SPACES)
def test_batch_normalization_gradient_equals_torch(space, check_gradients):
    model = f"""{HEAD} g (float[N,4{space}] x, float[4] s, float[4] b, float[4] m, float[4] v)
        => (float[N,4{space}] y) {{ y = BatchNormalization<epsilon = 0.01>(x, s, b, m, v) }}"""

    def function(x, s, b, m, v):
        s, b, m, v = (t.reshape(-1, *[1] * (x.ndim - 2)) for t in (s, b, m, v))
        return (x - m) / (v + 0.01).sqrt() * s + b

    variance = np.array([0.5, 1, 2, 0.1], "f")
    check_gradients(model, function, inputs={"v": variance}, sizes=SIZES)


def test_batch_normalization_gradient_is_one_product_when_its_parameters_are_constant():
    model = f"""{HEAD} g (float[N,2,4,4] x) => (float[N,2,4,4] y)
        <float[2] s = {{1,2}}, float[2] b = {{0,1}}, float[2] m = {{0,1}}, float[2] v = {{1,4}}>
        {{ y = BatchNormalization(x, s, b, m, v) }}"""
    backward = differentiate(parser.parse_model(model)).backward
    assert [n.op_type for n in backward.graph.node] == ["Mul"]


def test_batch_normalization_is_refused_when_training():
    model = f"""{HEAD} g (float[N,2,4,4] x, float[2] s, float[2] b, float[2] m, float[2] v)
        => (float[N,2,4,4] y)
        {{ y, mm, vv = BatchNormalization<training_mode = 1>(x, s, b, m, v) }}"""
    with pytest.raises(UnsupportedOperatorError, match=r"BatchNormalization, opset 21.*training"):
        differentiate(parser.parse_model(model))


@pytest.mark.parametrize("space", [",19", ",5,7", ",H,7", ",3,4,5"])
def test_instance_normalization_gradient_equals_torch(space, check_gradients):
    model = f"""{HEAD} g (float[N,4{space}] x, float[4] s, float[4] b) => (float[N,4{space}] y)
        {{ y = InstanceNormalization<epsilon = 0.01>(x, s, b) }}"""
    check_gradients(
        model, lambda x, s, b: F.instance_norm(x, None, None, s, b, eps=0.01), sizes=SIZES
    )


@pytest.mark.parametrize(("shape", "axis", "scale"), [
    ("N,19", -1, "19"), ("N,3,5", -1, "5"), ("N,3,5", 1, "3,5"), ("3,4,H,7", 2, "H,7"),
    ("3,4,5", -2, "4,5"),
])  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization_gradient_equals_torch(shape, axis, scale, bias, check_gradients):
    inputs = f"float[{shape}] x, float[{scale}] s" + (f", float[{scale}] b" if bias else "")
    call = "x, s, b" if bias else "x, s"
    model = f"""{HEAD} g ({inputs}) => (float[{shape}] y)
        {{ y = LayerNormalization<axis = {axis}, epsilon = 0.01>({call}) }}"""
    check_gradients(
        model, lambda x, s, b=None: F.layer_norm(x, s.shape, s, b, eps=0.01), sizes=SIZES
    )


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("space", [",19", ",5,7", ",H,7"])
def test_group_normalization_gradient_equals_torch(groups, space, check_gradients):
    model = f"""{HEAD} g (float[N,6{space}] x, float[6] s, float[6] b) => (float[N,6{space}] y)
        {{ y = GroupNormalization<num_groups = {groups}, epsilon = 0.01>(x, s, b) }}"""
    check_gradients(model, lambda x, s, b: F.group_norm(x, groups, s, b, eps=0.01), sizes=SIZES)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_lp_normalization_gradient_equals_torch(p, axis, check_gradients):
    model = f"""{HEAD} g (float[N,4,7] x) => (float[N,4,7] y)
        {{ y = LpNormalization<p = {p}, axis = {axis}>(x) }}"""
    check_gradients(
        model, lambda x: x / torch.linalg.vector_norm(x, p, dim=axis, keepdim=True), sizes=SIZES
    )


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_gradient_is_finite_where_the_norm_is_zero(p):
    model = f"""{HEAD} g (float[2,3] x) => (float[2,3] y) {{ y = LpNormalization<p = {p}>(x) }}"""
    fused = differentiate(parser.parse_model(model)).fused
    feeds = {"x": np.array([[0, 0, 0], [1, 2, 2]], "f"), "ct_y": np.ones((2, 3), "f")}
    grad = ort.InferenceSession(fused.SerializeToString()).run(["grad_x"], feeds)[0]
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[0], 0)
