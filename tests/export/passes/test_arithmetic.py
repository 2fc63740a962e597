"""Powers, divisions, products, sums: the same numbers with fewer passes over memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.export.passes import (
    drop_expands,
    expand_powers,
    merge_terms,
    order_products,
    share_subexpressions,
    turn_divisions,
)

Fn = Callable[..., Any]

# A product in another order: every step rounds once.
REORDERED = 1e-6


@pytest.mark.parametrize(
    ("exponent", "operators_after"),
    [
        (2.0, ["Mul"]),
        (3.0, ["Mul", "Mul"]),
        (0.5, ["Sqrt"]),
        (-0.5, ["Sqrt", "Reciprocal"]),
        (-1.0, ["Reciprocal"]),
    ],
)
def test_expand_powers_gives_the_same_result(
    exponent: float, operators_after: list[str], parse: Fn, normal: Fn, operators: Fn, run: Fn
) -> None:
    model = parse(
        "g (float[n,3] x) => (float[n,3] y) { y = Pow(x, e) }", e=np.array(exponent, np.float32)
    )
    result = expand_powers(model)
    assert operators(result.model) == operators_after
    assert result.changed == 1
    x = np.abs(normal(19, 3)) + np.float32(0.1)
    np.testing.assert_allclose(
        run(result.model, {"x": x})[0], x.astype(np.float64) ** exponent, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("given", "exponent", "reason"),
    [
        ("float[n]", np.array(2.5, np.float32), "no cheaper form"),
        ("int32[n]", np.array(2.0, np.float32), "not known to be floating"),
        ("float[n]", np.array([2, 3], np.float32), "not one constant number"),
    ],
)
def test_expand_powers_says_why_not(given: str, exponent: Any, reason: str, parse: Fn) -> None:
    model = parse(f"g ({given} x) => ({given} y) {{ y = Pow(x, e) }}", e=exponent)
    result = expand_powers(model)
    assert result.changed == 0
    assert reason in result.reasons[0]


def test_turn_divisions_divides_the_small_tensor(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse("g (float[n,8,h,w] x, float[n,1,h,w] d) => (float[n,8,h,w] y) { y = Div(x, d) }")
    result = turn_divisions(model)
    assert operators(result.model) == ["Reciprocal", "Mul"]
    feeds = {"x": normal(2, 8, 3, 5), "d": 1 + np.abs(normal(2, 1, 3, 5))}
    assert_same(model, result.model, feeds, rtol=REORDERED)


def test_turn_divisions_by_a_constant(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse("g (float[n,3] x) => (float[n,3] y) { y = Div(x, c) }", c=1 + np.abs(normal(3)))
    result = turn_divisions(model)
    assert operators(result.model) == ["Mul"]
    assert_same(model, result.model, {"x": normal(5, 3)}, rtol=REORDERED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[n,3] x, float[n,3] d) => (float[n,3] y) { y = Div(x, d) }",
            "known to be smaller",
        ),
        (
            "g (float[n,3] x, float[m,3] d) => (float[a,3] y) { y = Div(x, d) }",
            "known to be smaller",
        ),
        ("g (int32[n,3] x, int32[n,1] d) => (int32[n,3] y) { y = Div(x, d) }", "to be floating"),
        ("g (float[n,3] x) => (float[n,3] y) { y = Div(c, x) }", "dividend is a constant"),
        ("g (float[n,3] x) => (float[n,3] y) { y = Div(x, c) }", "divides by zero"),
    ],
)
def test_turn_divisions_says_why_not(text: str, reason: str, parse: Fn) -> None:
    model = parse(text, c=np.zeros(3, np.float32))
    result = turn_divisions(model)
    assert result.changed == 0
    assert reason in result.reasons[0]


def test_order_products_touches_the_large_tensor_once(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,8,h,w] x, float[n,1,h,w] r, float[n,1,h,w] v) => (float[n,8,h,w] y) {"
        "a = Mul(x, r) b = Neg(a) c = Mul(b, half) d = Div(c, v) y = Mul(r, d) }",
        half=np.array(0.5, np.float32),
    )
    result = order_products(model)
    assert result.changed == 1
    assert operators(result.model) == ["Mul", "Mul", "Div", "Mul"]
    last = result.model.graph.node[-1]
    assert "x" in last.input
    assert sum("x" in node.input for node in result.model.graph.node) == 1
    feeds = {"x": normal(2, 8, 3, 5), "r": normal(2, 1, 3, 5), "v": 1 + np.abs(normal(2, 1, 3, 5))}
    assert_same(model, result.model, feeds, rtol=REORDERED)
    assert order_products(result.model).changed == 0


def test_order_products_merges_numbers(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,3] x) => (float[n,3] y) "
        "{ a = Mul(x, c) b = Neg(a) d = Div(b, e) y = Mul(f, d) }",
        c=np.array(3, np.float32),
        e=np.array([4], np.float32),
        f=np.array(0.1, np.float32),
    )
    result = order_products(model)
    assert operators(result.model) == ["Mul"]
    assert_same(model, result.model, {"x": normal(2, 3)}, rtol=REORDERED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float16[n,3] x, float16[n,1] r) => (float16[n,3] y) "
            "{ a = Mul(x, r) y = Mul(a, r) }",
            "its type is float16",
        ),
        (
            "g (float[n,3] x, float[n,1] r) => (float[n,3] y) { a = Mul(x, zero) y = Mul(a, r) }",
            "its constant is 0",
        ),
        (
            "g (float[n,3] x, float r) => (float[n,3] y) { a = Mul(x, r) y = Mul(a, r) }",
            "unknown rank or a single number",
        ),
    ],
)
def test_order_products_says_why_not(text: str, reason: str, parse: Fn) -> None:
    result = order_products(parse(text, zero=np.array(0, np.float32)))
    assert result.changed == 0
    assert reason in result.reasons[0]


def test_order_products_keeps_shared_and_published_parts(
    parse: Fn, normal: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,3] x, float[n,1] r) => (float[n,3] y, float[n,3] a, float[n,3] z) "
        "{ a = Mul(x, r) b = Mul(a, r) y = Neg(b) z = Exp(b) }"
    )
    result = order_products(model)
    assert result.changed == 0
    assert_same(model, result.model, {"x": normal(2, 3), "r": normal(2, 1)})


def test_merge_terms_adds_once(parse: Fn, normal: Fn, operators: Fn, assert_same: Fn) -> None:
    model = parse(
        "g (float[n,3] a, float[n,3] b) => (float[n,3] y, float[n,3] z, float[n,3] u) "
        "{ y = Sum(a, b, b) z = Add(a, a) u = Sum(a, b) }"
    )
    result = merge_terms(model)
    assert result.changed == 3
    assert operators(result.model) == ["Mul", "Add", "Mul", "Add"]
    feeds = {"a": normal(4, 3), "b": normal(4, 3)}
    assert_same(model, result.model, feeds, rtol=REORDERED)
    assert merge_terms(result.model).changed == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[n] a, float[n] b, float[n] c) => (float[n] y) { y = Sum(a, b, c) }", "repeated"),
        ("g (int32[n] a) => (int32[n] y) { y = Add(a, a) }", "to be floating"),
    ],
)
def test_merge_terms_says_why_not(text: str, reason: str, parse: Fn) -> None:
    result = merge_terms(parse(text))
    assert result.changed == 0
    assert reason in result.reasons[0]


def test_drop_expands_leaves_broadcasting_to_mul(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,8,h,w] x, float[n,1,h,w] r) => (float[n,8,h,w] y) "
        "{ s = Shape(x) e = Expand(r, s) a = Mul(e, x) y = Where(c, a, e) }",
        c=np.ones((1, 8, 1, 1), bool),
    )
    result = drop_expands(model)
    assert result.changed == 1
    assert "Expand" not in operators(result.model)
    assert_same(model, result.model, {"x": normal(2, 8, 3, 5), "r": normal(2, 1, 3, 5)}, rtol=0)


def test_drop_expands_takes_constant_shapes(parse: Fn, normal: Fn, assert_same: Fn) -> None:
    model = parse(
        "g (float[2,8] x, float[2,1] r) => (float[2,8] y) { e = Expand(r, s) y = Add(x, e) }",
        s=np.array([1, 8], np.int64),
    )
    result = drop_expands(model)
    assert result.changed == 1
    assert_same(model, result.model, {"x": normal(2, 8), "r": normal(2, 1)}, rtol=0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Shape(x) y = Expand(r, s)", "computes a graph output"),
        ("s = Shape(x) e = Expand(r, s) y = Concat<axis=0>(e, x)", "needs the full tensor"),
        ("s = Shape(x) e = Expand(r, s) y = Mul(e, r)", "no other operand"),
        ("e = Expand(r, t) y = Mul(e, x)", "target shape is not known"),
        ("s = Shape(z) e = Expand(r, s) y = Mul(e, x)", "no other operand"),
    ],
)
def test_drop_expands_says_why_not(body: str, reason: str, parse: Fn) -> None:
    model = parse(
        f"g (float[n,8] x, float[n,1] r, float[m,8] z, int64[2] t) => (float[a,b] y) {{ {body} }}"
    )
    result = drop_expands(model)
    assert result.changed == 0
    assert reason in result.reasons[0]
    assert result.model == model


def test_share_subexpressions_computes_once(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,3] x) => (float[n,3] y) { a = Exp(x) b = Exp(x) p = Elu<alpha=0.5>(a) "
        "q = Elu<alpha=0.5>(b) r = Elu<alpha=0.7>(b) s = Mul(p, q) t = Mul(s, c) u = Mul(t, d) "
        "y = Add(u, r) }",
        c=np.array(3, np.float32),
        d=np.array(3, np.float32),
    )
    result = share_subexpressions(model)
    assert operators(result.model) == ["Exp", "Elu", "Elu", "Mul", "Mul", "Mul", "Add"]
    assert len(result.model.graph.initializer) == 1
    assert_same(model, result.model, {"x": normal(4, 3)}, rtol=0)


def test_share_subexpressions_keeps_what_must_differ(parse: Fn, normal: Fn, operators: Fn) -> None:
    model = parse(
        "g (float[n] x) => (float[n] y, float[n] z, float[3] u) { y = Exp(x) z = Exp(x) "
        "p = RandomNormal<shape=[3]>() q = RandomNormal<shape=[3]>() u = Sub(p, q) }"
    )
    result = share_subexpressions(model)
    assert result.changed == 0
    assert re.search("gives a graph output its name", result.reasons[0])
    assert len(operators(result.model)) == 5
