"""Batch norm, scales and offsets into weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.export.passes import fold_offsets, fold_scales, fuse_batch_norm

Fn = Callable[..., Any]
Array = NDArray[np.float32]

LINEAR = {
    "Conv": ("pads=[1,1,1,1]", (6, 4, 3, 3), "n,4,h,w", "n,m,p,q", (2, 4, 3, 5)),
    "Conv grouped": ("group=2", (6, 2, 1, 1), "n,4,h,w", "n,m,p,q", (1, 4, 1, 7)),
    "ConvTranspose": ("strides=[2,2]", (4, 6, 2, 2), "n,4,h,w", "n,m,p,q", (2, 4, 3, 5)),
    "ConvTranspose grouped": ("group=2", (4, 3, 2, 2), "n,4,h,w", "n,m,p,q", (1, 4, 2, 2)),
    "Gemm": ("alpha=0.5, beta=2.0", (4, 6), "n,4", "n,m", (19, 4)),
    "Gemm transposed": ("transB=1", (6, 4), "n,4", "n,m", (3, 4)),
}
CHANNELS, FEATURES = 4, 6


@pytest.fixture(params=LINEAR)
def linear(request: pytest.FixtureRequest) -> tuple[str, str, tuple[int, ...], str, str, Any]:
    """Operator, attributes, shapes of the weight, input and output, and of a feed."""
    op = request.param.split()[0]
    return (op, *LINEAR[request.param])


def broadcast(vector: Array, rank: int) -> Array:
    return vector.reshape(1, -1, *[1] * (rank - 2))


@pytest.mark.parametrize("bias", [True, False])
def test_fuse_batch_norm_gives_the_same_result(
    linear: Any, bias: bool, parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    op, attributes, weight, given, made, feed = linear
    model = parse(
        f"g (float[{given}] x) => (float[{made}] y) {{ h = {op}<{attributes}>"
        f"(x, W{', b' if bias else ''}) "
        "y = BatchNormalization<epsilon=0.01>(h, gamma, beta, mean, var) }",
        W=normal(*weight),
        **({"b": normal(FEATURES)} if bias else {}),
        gamma=normal(FEATURES),
        beta=normal(FEATURES),
        mean=normal(FEATURES),
        var=np.abs(normal(FEATURES)),
    )
    result = fuse_batch_norm(model)
    assert result.changed == 1
    assert operators(result.model) == [op]
    assert len(result.model.graph.initializer) == 2
    assert_same(model, result.model, {"x": normal(*feed)})


NORM = "y = BatchNormalization(h, s, s, s, s)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"g (float[n,2,h,w] h) => (float[n,2,h,w] y) {{ {NORM} }}", "no Conv, .* comes before"),
        (
            "g (float[n,2,h,w] x) => (float[n,2,h,w] y, float[n,2,h,w] h) "
            f"{{ h = Conv(x, W) {NORM} }}",
            "used elsewhere too",
        ),
        (
            "g (float[n,2,h,w] x, float[2,2,1,1] V) => (float[n,2,h,w] y) "
            f"{{ h = Conv(x, V) {NORM} }}",
            "not constant",
        ),
        (
            "g (float[n,2,h,w] x) => (float[n,2,h,w] y) { h = Conv(x, W) "
            "y, m, v = BatchNormalization<training_mode=1>(h, s, s, s, s) }",
            "training mode",
        ),
        (
            f"g (float[n,2] x, float[2] c) => (float[n,2] y) {{ h = Gemm(x, M, c) {NORM} }}",
            "bias of .* is not a constant vector",
        ),
    ],
)
def test_fuse_batch_norm_says_why_not(text: str, reason: str, parse: Fn, normal: Fn) -> None:
    model = parse(text, W=normal(2, 2, 1, 1), s=np.ones(2, np.float32), M=normal(2, 2))
    result = fuse_batch_norm(model)
    assert result.changed == 0
    assert re.search(reason, result.reasons[0])
    assert result.model == model


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("op_type", ["Mul", "Div"])
@pytest.mark.parametrize("side", ["before", "after", "both"])
def test_fold_scales_gives_the_same_result(
    linear: Any,
    per_channel: bool,
    op_type: str,
    side: str,
    parse: Fn,
    normal: Fn,
    operators: Fn,
    assert_same: Fn,
) -> None:
    op, attributes, weight, given, made, feed = linear
    before = f"a = {op_type}(x, c)" if side != "after" else "a = Identity(x)"
    after = f"y = {op_type}(h, d)" if side != "before" else "y = Identity(h)"
    text = (
        f"g (float[{given}] x) => (float[{made}] y) "
        f"{{ {before} h = {op}<{attributes}>(a, W, b) {after} }}"
    )
    factors = {
        name: broadcast(1 + np.abs(normal(size)), len(feed)) if per_channel else np.float32(0.3)
        for name, size in (("c", CHANNELS), ("d", FEATURES))
    }
    used = {n: np.asarray(v) for n, v in factors.items() if f", {n})" in text}
    model = parse(text, W=normal(*weight), b=normal(FEATURES), **used)
    result = fold_scales(model)
    assert result.changed == (2 if side == "both" else 1)
    assert op_type not in operators(result.model)
    assert_same(model, result.model, {"x": normal(*feed)})


def test_fold_scales_folds_into_matmul_and_from_the_left(
    parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    model = parse(
        "g (float[a,b,4] x) => (float[a,b,6] y) { s = Mul(c, x) h = MatMul(s, W) y = Mul(d, h) }",
        W=normal(4, 6),
        c=normal(4),
        d=normal(1, 6),
    )
    result = fold_scales(model)
    assert operators(result.model) == ["MatMul"]
    assert_same(model, result.model, {"x": normal(2, 3, 4)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Mul(x, wide) y = Conv(s, W)", "not one number per input channel"),
        ("s = Mul(x, two) y = Conv(s, V)", "weight of Conv .* is not constant"),
        ("h = Conv(x, W) y = Mul(h, wide)", "not one number per output channel"),
        ("h = Conv(x, W) k = Mul(h, two) y = Add(k, h)", "used elsewhere too"),
        ("s = Mul(x, two) k = Conv(s, W) y = Add(k, s)", "no linear operator alone reads it"),
        ("h = Conv(x, W, v) y = Mul(h, two)", "bias of Conv .* is not a constant vector"),
        ("h = Relu(x) y = Mul(h, two)", "no linear operator comes before it"),
    ],
)
def test_fold_scales_says_why_not(body: str, reason: str, parse: Fn, normal: Fn) -> None:
    model = parse(
        "g (float[n,2,h,w] x, float[2,2,1,1] V, float[2] v) => (float[a,b,c,d] y) { " + body + " }",
        W=normal(2, 2, 1, 1),
        two=np.array(2, np.float32),
        wide=normal(1, 2, 1, 3),
    )
    result = fold_scales(model)
    assert result.changed == 0
    assert re.search(reason, " ".join(result.reasons))
    assert result.model == model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op_type", ["Add", "Sub"])
def test_fold_offsets_gives_the_same_result(
    linear: Any,
    bias: bool,
    op_type: str,
    parse: Fn,
    normal: Fn,
    operators: Fn,
    assert_same: Fn,
) -> None:
    op, attributes, weight, given, made, feed = linear
    if "beta" in attributes:
        attributes = "alpha=0.5"
    model = parse(
        f"g (float[{given}] x) => (float[{made}] y) {{ h = {op}<{attributes}>"
        f"(x, W{', b' if bias else ''}) y = {op_type}(h, c) }}",
        W=normal(*weight),
        **({"b": normal(FEATURES)} if bias else {}),
        c=broadcast(normal(FEATURES), len(feed)),
    )
    result = fold_offsets(model)
    assert result.changed == 1
    assert operators(result.model) == [op]
    assert_same(model, result.model, {"x": normal(*feed)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Add(x, two)", "no operator with a bias"),
        ("h = Conv(x, W) y = Add(h, wide)", "not one number per output channel"),
        ("h = Conv(x, W) k = Add(h, two) y = Mul(k, h)", "used elsewhere too"),
        ("h = Conv(x, V) y = Add(h, two)", "weight of Conv .* is not constant"),
        ("h = Conv(x, W, v) y = Add(two, h)", "bias of Conv .* is not a constant vector"),
    ],
)
def test_fold_offsets_says_why_not(body: str, reason: str, parse: Fn, normal: Fn) -> None:
    model = parse(
        "g (float[n,2,h,w] x, float[2,2,1,1] V, float[2] v) => (float[a,b,c,d] y) { " + body + " }",
        W=normal(2, 2, 1, 1),
        two=np.array(2, np.float32),
        wide=normal(1, 2, 1, 3),
    )
    result = fold_offsets(model)
    assert result.changed == 0
    assert re.search(reason, result.reasons[0])
    assert result.model == model


def test_fold_offsets_leaves_what_is_subtracted_from(parse: Fn, normal: Fn) -> None:
    model = parse(
        "g (float[n,2,h,w] x) => (float[n,2,h,w] y) { h = Conv(x, W) y = Sub(two, h) }",
        W=normal(2, 2, 1, 1),
        two=np.array(2, np.float32),
    )
    assert fold_offsets(model).model == model
