"""Folding what is constant, dropping what does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from unblemish.export.passes import drop_dead_nodes, drop_identities, fold_constants
from unblemish.export.passes.result import PassResult

Fn = Callable[..., Any]


def initialiser(result: PassResult, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name == name)


def test_fold_constants_computes_once(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    weight = normal(3, 4)
    model = parse(
        "g (float[n,4] x) => (float[n,3] y) { two = Constant<value_float=2.0>() "
        "V = Mul(W, two) Vt = Transpose<perm=[1,0]>(V) y = MatMul(x, Vt) }",
        W=weight,
    )
    result = fold_constants(model)
    assert operators(result.model) == ["MatMul"]
    assert result.changed == 3
    np.testing.assert_array_equal(initialiser(result, "Vt"), 2 * weight.T)
    assert [t.name for t in result.model.graph.initializer] == ["Vt"]
    assert_same(model, result.model, {"x": normal(5, 4)})


def test_fold_constants_knows_static_shapes(parse: Fn, operators: Fn) -> None:
    model = parse(
        "g (float[n,4,6] x) => (int64[2] s, int64[3] t, int64 u) "
        "{ a = Shape<start=1>(x) s = Abs(a) t = Shape(x) k = Shape<start=-2, end=-1>(x) "
        "axis = Constant<value_ints=[0]>() r = ReduceProd<keepdims=0>(k) u = Neg(r) }",
        opset=18,
    )
    result = fold_constants(model)
    # What computes a graph output stays, and so does the shape with a symbolic part.
    assert sorted(operators(result.model)) == ["Abs", "Neg", "Shape"]
    np.testing.assert_array_equal(initialiser(result, "a"), [4, 6])
    assert initialiser(result, "r") == 4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = RandomNormal<shape=[2,2]>()", None),
        ("s = Constant<value_ints=[500,500]>() e = Expand(W, s) y = Abs(e)", "enlarge the model"),
        ("y = Abs(W)", "computes a graph output"),
    ],
)
def test_fold_constants_says_why_not(body: str, reason: str | None, parse: Fn) -> None:
    model = parse(f"g () => (float[a,b] y) {{ {body} }}", W=np.ones((1, 1), np.float32))
    result = fold_constants(model)
    assert result.model.graph.node[-1].output[0] == "y"
    if reason is None:
        assert not result.reasons
    else:
        assert any(reason in line for line in result.reasons)


def test_fold_constants_leaves_overridable_initialisers(parse: Fn) -> None:
    model = parse(
        "g (float[2] x, float[2] W) => (float[2] y) { V = Abs(W) y = Add(x, V) }",
        W=np.array([-1, 2], np.float32),
    )
    result = fold_constants(model)
    assert result.changed == 0
    assert result.model == model


def test_drop_dead_nodes_drops_chains_and_weights(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,4] x) => (float[n,4] y) { a = MatMul(x, W) b = Relu(a) y = Abs(x) }",
        W=normal(4, 4),
    )
    result = drop_dead_nodes(model)
    assert operators(result.model) == ["Abs"]
    assert result.changed == 3
    assert not result.model.graph.initializer
    assert_same(model, result.model, {"x": normal(2, 4)})
    assert drop_dead_nodes(result.model).changed == 0


def test_drop_dead_nodes_sees_what_branches_capture(parse: Fn, assert_same: Fn) -> None:
    model = parse(
        "g (float[n] x, bool c) => (float[n] y) { a = Abs(x) b = Neg(x) "
        "y = If(c) <then_branch = t () => (float[n] u) { u = Sqrt(a) }, "
        "else_branch = e () => (float[n] v) { v = Exp(x) }> }"
    )
    result = drop_dead_nodes(model)
    assert result.changed == 1
    x = np.array([1, -4], np.float32)
    for flag in (True, False):
        assert_same(model, result.model, {"x": x, "c": np.array(flag)})


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity(x)",
        "a = Dropout(x)",
        "a = Cast<to=1>(x)",
        "a = Transpose<perm=[0,1]>(x)",
        "s = Constant<value_ints=[3,4]>() a = Reshape(x, s)",
        "s = Constant<value_ints=[1,4]>() a = Expand(x, s)",
        "p = Constant<value_ints=[0,0,0,0]>() a = Pad(x, p)",
        "a = Concat<axis=0>(x)",
        "a = Max(x)",
        "z = Constant<value_float=0.0>() a = Add(x, z)",
        "z = Constant<value_float=0.0>() a = Sub(x, z)",
        "one = Constant<value_floats=[1.0,1.0,1.0,1.0]>() a = Mul(x, one)",
        "one = Constant<value_float=1.0>() a = Div(x, one)",
        "one = Constant<value_float=1.0>() a = Pow(x, one)",
    ],
)
def test_drop_identities_drops(
    body: str, parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(f"g (float[3,4] x) => (float[3,4] y) {{ {body} y = Neg(a) }}")
    result = drop_identities(model)
    assert result.changed == 1
    assert [op for op in operators(result.model) if op != "Constant"] == ["Neg"]
    assert_same(model, result.model, {"x": normal(3, 4)}, rtol=0)


@pytest.mark.parametrize(
    "body",
    [
        "y = Cast<to=11>(x) z = Neg(x)",
        "y = Transpose<perm=[1,0]>(x) z = Neg(x)",
        "s = Constant<value_ints=[4,3]>() y = Reshape(x, s) z = Neg(x)",
        "p = Constant<value_ints=[0,0,0,1]>() y = Pad(x, p) z = Neg(x)",
        "one = Constant<value_floats=[1.0,1.0,1.0,2.0]>() y = Mul(x, one) z = Neg(x)",
        "o = Constant<value = float[2,3,4] {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>() "
        "y = Mul(x, o) z = Neg(x)",
        "z = Constant<value_float=0.0>() y = Sub(z, x)",
    ],
)
def test_drop_identities_keeps_what_changes_something(body: str, parse: Fn) -> None:
    dtype, shape = ("double", "a,b") if "Cast" in body else ("float", "a,b")
    shape = "2,3,4" if "float[2,3,4]" in body else shape
    model = parse(f"g (float[3,4] x) => ({dtype}[{shape}] y) {{ {body} }}")
    result = drop_identities(model)
    assert result.changed == 0
    assert result.model == model


def test_drop_identities_keeps_the_names_of_outputs(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse("g (float[n] x) => (float[n] y) { a = Neg(x) y = Identity(a) }")
    result = drop_identities(model)
    assert operators(result.model) == ["Neg"]
    assert_same(model, result.model, {"x": normal(5)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[n] x) => (float[n] y) { y = Identity(x) }", "names belong to inputs, outputs"),
        (
            "g (float[n] x) => (float[n] a, float[n] y) { a = Neg(x) y = Identity(a) }",
            "names belong to inputs, outputs",
        ),
        (
            "g (float[n] x) => (float[n] y, bool[n] m) { a, m = Dropout(x) y = Neg(a) }",
            "its further outputs are used",
        ),
    ],
)
def test_drop_identities_says_why_not(text: str, reason: str, parse: Fn) -> None:
    model = parse(text)
    result = drop_identities(model)
    assert result.changed == 0
    assert reason in result.reasons[0]
    assert result.model == model


def test_drop_identities_keeps_what_a_branch_captures(parse: Fn, assert_same: Fn) -> None:
    model = parse(
        "g (float[n] x, bool c) => (float[n] y) { h = Neg(x) a = Identity(h) "
        "y = If(c) <then_branch = t () => (float[n] u) { u = Abs(a) }, "
        "else_branch = e () => (float[n] v) { v = Exp(a) }> }"
    )
    result = drop_identities(model)
    assert_same(model, result.model, {"x": np.ones(3, np.float32), "c": np.array(True)})
