"""Rules of `arithmetic.py`: element-wise arithmetic, choices, casts."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import parser

from unblemish.errors import UnsupportedOperatorError
from unblemish.export import differentiate

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def gradients(model: str, feeds: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    """Values of grad_<name> from the fused graph."""
    fused = differentiate(parser.parse_model(model)).fused
    session = ort.InferenceSession(fused.SerializeToString())
    return session.run([f"grad_{name}" for name in names], feeds)


def positive(*shape: int) -> np.ndarray:
    """Values in [0.5, 2]: away from the poles of 1/x and log x."""
    return np.random.default_rng(3).uniform(0.5, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize(("op", "function"), [
    ("Neg(x)", torch.neg), ("Abs(x)", torch.abs), ("Exp(x)", torch.exp), ("Erf(x)", torch.erf),
    ("Sin(x)", torch.sin), ("Cos(x)", torch.cos), ("Identity(x)", torch.clone),
    ("Dropout(x)", torch.clone), ("Sum(x, x, x)", lambda x: 3 * x), ("Mean(x, x)", torch.clone),
])  # fmt: skip
@pytest.mark.parametrize("shape", ["1", "3,19", "2,1,7,5"])
def test_unary_gradient_equals_torch(op, function, shape, check_gradients):
    model = f"{HEAD} g (float[{shape}] x) => (float[{shape}] y) {{ y = {op} }}"
    check_gradients(model, lambda x: function(x))


@pytest.mark.parametrize(("op", "function"), [
    ("Sqrt(x)", torch.sqrt), ("Reciprocal(x)", torch.reciprocal), ("Log(x)", torch.log),
])  # fmt: skip
def test_unary_gradient_equals_torch_where_x_is_positive(op, function, check_gradients):
    model = f"{HEAD} g (float[3,19] x) => (float[3,19] y) {{ y = {op} }}"
    check_gradients(model, lambda x: function(x), inputs={"x": positive(3, 19)})


BROADCASTS = [("3,19", "3,19", "3,19"), ("3,19", "19", "3,19"), ("1", "2,5", "2,5"),
              ("3,1,4", "2,1", "3,2,4"), ("2,3", "", "2,3")]  # fmt: skip


@pytest.mark.parametrize(("op", "function"), [
    ("Add", torch.add), ("Sub", torch.sub), ("Mul", torch.mul), ("Div", torch.div),
    ("Pow", torch.pow), ("Min", torch.minimum), ("Max", torch.maximum),
])  # fmt: skip
@pytest.mark.parametrize(("a", "b", "y"), BROADCASTS)
def test_binary_gradient_equals_torch_when_broadcast(op, function, a, b, y, check_gradients):
    second = f"float[{b}]" if b else "float"
    model = f"{HEAD} g (float[{a}] a, {second} b) => (float[{y}] y) {{ y = {op}(a, b) }}"
    sizes = [[int(d) for d in s.split(",")] if s else [] for s in (a, b)]
    rng = np.random.default_rng(7)
    inputs = {k: rng.uniform(0.5, 2, s).astype("f") for k, s in zip("ab", sizes, strict=True)}
    check_gradients(model, lambda a, b: function(a, b), inputs=inputs)


@pytest.mark.parametrize("op", ["Add", "Mul", "Div", "Max", "Sub"])
@pytest.mark.parametrize("sizes", [{"N": 3, "M": 3}, {"N": 3, "M": 1}, {"N": 1, "M": 4}])
def test_binary_gradient_undoes_broadcasts_that_symbolic_sizes_leave_open(
    op, sizes, check_gradients
):
    functions = {"Add": torch.add, "Mul": torch.mul, "Div": torch.div, "Max": torch.maximum,
                 "Sub": torch.sub}  # fmt: skip
    model = f"{HEAD} g (float[N,5] a, float[2,M,5] b) => (float[2,K,5] y) {{ y = {op}(a, b) }}"
    rng = np.random.default_rng(7)
    inputs = {"a": rng.uniform(0.5, 2, (sizes["N"], 5)).astype("f"),
              "b": rng.uniform(0.5, 2, (2, sizes["M"], 5)).astype("f")}  # fmt: skip
    check_gradients(model, lambda a, b: functions[op](a, b), inputs=inputs, sizes=sizes)


@pytest.mark.parametrize("exponent", [-1.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.5])
def test_pow_gradient_equals_torch_when_the_exponent_is_constant(exponent, check_gradients):
    model = (
        f"{HEAD} g (float[3,5] x) => (float[3,5] y) <float p = {{{exponent}}}> {{ y = Pow(x, p) }}"
    )
    check_gradients(model, lambda x: x**exponent, inputs={"x": positive(3, 5)})


def test_pow_gradient_of_a_zero_base_is_finite_when_the_exponent_varies():
    model = f"{HEAD} g (float[4] x, float[4] p) => (float[4] y) {{ y = Pow(x, p) }}"
    x, p, ct = (np.array(v, np.float32) for v in ([0, 0, 2, 2], [0, 2, 0, 3], [1, 1, 1, 1]))
    grad_x, grad_p = gradients(model, {"x": x, "p": p, "ct_y": ct}, "x", "p")
    np.testing.assert_allclose(grad_x, [0, 0, 0, 12])
    np.testing.assert_allclose(grad_p, [0, 0, np.log(2), 8 * np.log(2)], rtol=1e-6)


def test_extremum_gradient_goes_to_the_chosen_of_three(check_gradients):
    model = f"""{HEAD} g (float[3,19] a, float[19] b, float[1] c) => (float[3,19] y)
        {{ y = Max(a, b, c) }}"""
    check_gradients(model, lambda a, b, c: torch.maximum(torch.maximum(a, b), c))


def test_extremum_gradient_is_shared_equally_when_operands_tie():
    model = f"{HEAD} g (float[2] a, float[2] b) => (float[2] y) {{ y = Min(a, b) }}"
    feeds = {"a": np.array([1, 2], "f"), "b": np.array([1, 3], "f"), "ct_y": np.array([4, 4], "f")}
    grad_a, grad_b = gradients(model, feeds, "a", "b")
    np.testing.assert_array_equal(grad_a, [2, 4])
    np.testing.assert_array_equal(grad_b, [2, 0])


def test_extremum_gives_the_whole_cotangent_when_a_constant_ties():
    model = f"{HEAD} g (float[3] a) => (float[3] y) <float c = {{1}}> {{ y = Max(a, c) }}"
    grad = gradients(model, {"a": np.array([0, 1, 2], "f"), "ct_y": np.ones(3, "f")}, "a")[0]
    np.testing.assert_array_equal(grad, [0, 1, 1])


def test_where_gradient_follows_the_condition_when_broadcast(check_gradients):
    model = (f"{HEAD} g (bool[3,1] c, float[3,19] a, float[19] b) => (float[3,19] y) "
             "{ y = Where(c, a, b) }")  # fmt: skip
    check_gradients(
        model,
        lambda c, a, b: torch.where(c, a, b),
        inputs={"c": np.array([[True], [False], [True]])},
    )


def test_clip_gradient_reaches_input_and_bounds(check_gradients):
    model = (f"{HEAD} g (float[3,19] x, float lo, float hi) => (float[3,19] y) "
             "{ y = Clip(x, lo, hi) }")  # fmt: skip
    inputs = {"lo": np.array(-0.4, "f"), "hi": np.array(0.7, "f")}
    check_gradients(model, lambda x, lo, hi: torch.clamp(x, lo, hi), inputs=inputs)


@pytest.mark.parametrize("call", ["Clip(x)", "Clip(x, lo)", 'Clip(x, "", lo)'])
def test_clip_gradient_equals_torch_when_bounds_are_absent(call, check_gradients):
    model = f"{HEAD} g (float[3,5] x) => (float[3,5] y) <float lo = {{0.25}}> {{ y = {call} }}"
    bounds = {"Clip(x)": {}, "Clip(x, lo)": {"min": 0.25}, 'Clip(x, "", lo)': {"max": 0.25}}[call]
    check_gradients(model, lambda x: torch.clamp(x, **bounds) if bounds else x.clone())


def test_cast_gradient_is_cast_back():
    model = f"{HEAD} g (float[3] x) => (double[3] y) {{ a = Mul(x, x) y = Cast<to = 11>(a) }}"
    x, ct = np.array([1, -2, 3], "f"), np.array([1, 1, 2.0])
    grad = gradients(model, {"x": x, "ct_y": ct}, "x")[0]
    assert grad.dtype == np.float32
    np.testing.assert_array_equal(grad, 2 * x * ct)


def test_cast_to_integers_carries_no_gradient(check_gradients):
    model = f"""{HEAD} g (float[3] x) => (float[3] y)
        {{ i = Cast<to = 7>(x) f = Cast<to = 1>(i) y = Mul(x, f) }}"""
    inputs = {"x": np.array([1.3, -2.6, 3.4], "f")}
    check_gradients(model, lambda x: x * x.detach().trunc(), inputs=inputs, differences=False)


def test_dropout_is_refused_when_training():
    model = f"""{HEAD} g (float[3] x) => (float[3] y) <float r = {{0.5}}, bool t = {{1}}>
        {{ y = Dropout(x, r, t) }}"""
    with pytest.raises(UnsupportedOperatorError, match=r"Dropout, opset 21.*training"):
        differentiate(parser.parse_model(model))
