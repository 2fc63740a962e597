"""Chains of transpositions, convolution with pooling, and all passes together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.export.passes import (
    count_operators,
    merge_conv_pool,
    merge_transposes,
    optimise,
    optimise_with_report,
    turn_channel_means,
)

Fn = Callable[..., Any]


def test_merge_transposes_cancels(parse: Fn, normal: Fn, operators: Fn, assert_same: Fn) -> None:
    model = parse(
        "g (float[n,3,4] x) => (float[a,b,c] y, float[d,e,f] z) { s = Transpose<perm=[2,0,1]>(x) "
        "t = Transpose<perm=[1,2,0]>(s) y = Neg(t) z = Transpose<perm=[0,2,1]>(s) }"
    )
    result = merge_transposes(model)
    assert result.changed == 2
    assert operators(result.model) == ["Transpose", "Neg", "Transpose"]
    assert_same(model, result.model, {"x": normal(2, 3, 4)}, rtol=0)
    assert operators(optimise(model)) == ["Neg", "Transpose"]


def test_merge_transposes_says_why_not(parse: Fn) -> None:
    model = parse(
        "g (float[n,3] x) => (float[n,3] y) { s = Transpose(x) y = Transpose<perm=[1,0]>(s) }"
    )
    result = merge_transposes(model)
    assert result.changed == 0
    assert "left to the default" in result.reasons[0]


@pytest.mark.parametrize(
    ("conv", "weight", "window", "dims"),
    [
        ("pads=[1,1,1,1]", (2, 3, 3, 3), [2, 2], (6, 4)),
        ("pads=[1,1,1,1]", (2, 3, 3, 3), [2, 2], (7, 5)),  # the odd row is left out
        ("pads=[0,1,2,0]", (5, 3, 2, 3), [3, 2], (9, 5)),
        ("group=3", (3, 1, 1, 1), [1, 4], (1, 19)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_merge_conv_pool_gives_the_same_result(
    conv: str,
    weight: tuple[int, ...],
    window: list[int],
    dims: tuple[int, int],
    bias: bool,
    parse: Fn,
    normal: Fn,
    operators: Fn,
    assert_same: Fn,
) -> None:
    model = parse(
        f"g (float[n,3,h,w] x) => (float[n,m,p,q] y) {{ c = Conv<{conv}>(x, W{', b' * bias}) "
        f"y = AveragePool<kernel_shape={window}, strides={window}>(c) }}",
        W=normal(*weight),
        **({"b": normal(weight[0])} if bias else {}),
    )
    result = merge_conv_pool(model)
    assert result.changed == 1
    assert operators(result.model) == ["Conv"]
    assert_same(model, result.model, {"x": normal(2, 3, *dims)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", "no Conv comes before"),
        (
            "c = Conv(x, W) y = AveragePool<kernel_shape=[2,2], strides=[1,1]>(c)",
            "stride differs from its window",
        ),
        (
            "c = Conv(x, W) y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(c)",
            "rounded up",
        ),
        (
            "c = Conv(x, W) y = AveragePool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1]>(c)",
            "padded",
        ),
        (
            "c = Conv<strides=[2,2]>(x, W) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
            "is strided",
        ),
        (
            "c = Conv(x, V) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
            "weight of Conv .* is not constant",
        ),
        (
            "c = Conv(x, W) p = AveragePool<kernel_shape=[1,1], strides=[1,1]>(c) y = Mul(p, c)",
            "used elsewhere",
        ),
    ],
)
def test_merge_conv_pool_says_why_not(body: str, reason: str, parse: Fn, normal: Fn) -> None:
    model = parse(
        f"g (float[n,2,h,w] x, float[2,2,1,1] V) => (float[a,b,c,d] y) {{ {body} }}",
        W=normal(2, 2, 1, 1),
    )
    result = merge_conv_pool(model)
    assert result.changed == 0
    assert re.search(reason, result.reasons[0])
    assert result.model == model


GENERATOR = """g (float[n,4] z) => (float[n,3,8,8] image) {
    two = Constant<value_float=2.0>() eps = Constant<value_float=0.00001>()
    scales = Constant<value_floats=[1.0,1.0,2.0,2.0]>()
    shape = Constant<value_ints=[-1,4,2,2]>()
    scaled = Mul(z, gain) flat = Gemm(scaled, L) x0 = Reshape(flat, shape)
    p0 = Pow(x0, two) axes = Constant<value_ints=[1]>()
    m0 = ReduceMean<axes=[1]>(p0) e0 = Add(m0, eps) s0 = Sqrt(e0) n0 = Div(x0, s0)
    u1 = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(n0, , scales)
    c1 = Conv<pads=[1,1,1,1]>(u1, A) k1 = Mul(c1, gain) b1 = Add(k1, offset)
    a1 = LeakyRelu<alpha=0.2>(b1) i1 = Identity(a1)
    t1 = ConvTranspose<pads=[1,1,1,1]>(i1, B)
    norm = BatchNormalization(t1, g, g, g, g)
    u2 = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(norm, , scales)
    image = Conv<pads=[1,1,1,1]>(u2, C)
}"""


def test_optimise_runs_all_passes_and_reports(parse: Fn, normal: Fn, assert_same: Fn) -> None:
    model = parse(
        GENERATOR,
        gain=np.array(0.5, np.float32),
        L=normal(4, 16),
        A=normal(5, 4, 3, 3),
        offset=normal(1, 5, 1, 1),
        B=normal(5, 4, 3, 3),
        g=1 + np.abs(normal(4)),
        C=normal(3, 4, 3, 3),
    )
    after, report = optimise_with_report(model)
    assert count_operators(after) == {
        "Add": 1,
        "Conv": 1,
        "ConvTranspose": 2,
        "Gemm": 1,
        "LeakyRelu": 1,
        "Mul": 2,
        "ReduceMean": 1,
        "Reciprocal": 1,
        "Reshape": 1,
        "Sqrt": 1,
    }
    assert report.changed["merge_upsample_conv"] == 2
    assert report.changed["fuse_batch_norm"] == 1
    assert report.after == count_operators(after)
    assert "merge_upsample_conv: 2 rewritten" in report.text()
    assert_same(model, after, *({"z": normal(batch, 4)} for batch in (1, 3)), rtol=1e-4)


def test_optimise_comes_to_rest(parse: Fn, normal: Fn) -> None:
    model = parse(
        "g (float[n,8,h,w] x, float[n,1,h,w] r) => (float[n,8,h,w] y, float[n,8,h,w] z) {"
        "a = Mul(x, r) b = Mul(a, r) c = Mul(r, r) d = Mul(c, x) e = Div(d, r) y = Sum(b, d, d) "
        "z = Neg(e) }"
    )
    once, first = optimise_with_report(model)
    again, second = optimise_with_report(once)
    assert sum(first.changed.values())
    assert not any(second.changed.values())
    assert again == once


def test_optimise_takes_a_list_of_passes(parse: Fn) -> None:
    model = parse("g (float[n] x) => (float[n] y) { a = Identity(x) y = Neg(a) b = Exp(x) }")
    assert optimise(model, []) == model
    assert count_operators(optimise(model, [merge_transposes])) == count_operators(model)


def test_passes_leave_their_input_alone(parse: Fn) -> None:
    model = parse("g (float[n] x) => (float[n] y) { a = Identity(x) y = Neg(a) b = Exp(x) }")
    before = model.SerializeToString()
    assert len(optimise(model).graph.node) == 1
    assert model.SerializeToString() == before


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("dims", [(7,), (3, 5), (2, 3, 4)])
def test_turn_channel_means_gives_the_same_result(
    op_type: str, dims: tuple[int, ...], parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    names = ",".join("hwd"[: len(dims)])
    model = parse(
        f"g (float[n,19,{names}] x) => (float[n,1,{names}] y) {{ y = {op_type}(x, axes) }}",
        opset=18,
        axes=np.array([1], np.int64),
    )
    result = turn_channel_means(model)
    assert operators(result.model) == ["Conv"]
    assert_same(model, result.model, {"x": normal(2, 19, *dims)})


def test_turn_channel_means_reads_axes_of_old_opsets(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[n,3,h,w] x) => (float[n,1,h,w] y) { y = ReduceMean<axes=[1]>(x) }", opset=13
    )
    result = turn_channel_means(model)
    assert operators(result.model) == ["Conv"]
    assert_same(model, result.model, {"x": normal(1, 3, 1, 1)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[n,3,h] x) => (float[n,3,a] y) { y = ReduceMean<axes=[2]>(x) }", "axis 1 alone"),
        (
            "g (float[n,3,h] x) => (float[n,h] y) { y = ReduceMean<axes=[1], keepdims=0>(x) }",
            "keeping it",
        ),
        ("g (float[n,3] x) => (float[n,1] y) { y = ReduceMean<axes=[1]>(x) }", "no image"),
        ("g (float[n,c,h] x) => (float[n,1,h] y) { y = ReduceMean<axes=[1]>(x) }", "known number"),
        ("g (double[n,3,h] x) => (double[n,1,h] y) { y = ReduceMean<axes=[1]>(x) }", "float32"),
    ],
)
def test_turn_channel_means_says_why_not(text: str, reason: str, parse: Fn) -> None:
    model = parse(text, opset=13)
    result = turn_channel_means(model)
    assert result.changed == 0
    assert reason in result.reasons[0]
    assert result.model == model
