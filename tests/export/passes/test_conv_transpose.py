"""Transposed convolutions as convolutions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from unblemish.export.passes import split_conv_transpose, turn_conv_transpose

Fn = Callable[..., Any]


def transposed(attributes: str, dims: str = "h,w", inputs: str = "x, W, b") -> str:
    return (
        f"g (float[n,C,{dims}] x) => (float[n,m,{dims.upper()}] y) "
        f"{{ y = ConvTranspose<{attributes}>({inputs}) }}"
    )


@pytest.mark.parametrize(
    ("attributes", "weight", "dims", "maps"),
    [
        ("pads=[1,1,1,1]", (3, 2, 3, 3), (5, 4), 2),
        ("pads=[0,2,1,0]", (3, 2, 3, 4), (1, 7), 2),
        ("dilations=[2,3], pads=[1,0,2,3]", (19, 1, 2, 3), (4, 5), 1),
        ("group=2, pads=[1,1,1,1]", (4, 3, 3, 3), (2, 9), 6),
        ('auto_pad="SAME_UPPER"', (2, 3, 4, 3), (5, 4), 3),
        ('auto_pad="SAME_LOWER"', (2, 3, 4, 3), (5, 4), 3),
        ('auto_pad="VALID"', (2, 3, 2, 2), (1, 1), 3),
        ("pads=[1,1]", (3, 2, 3), (7,), 2),
        ("pads=[0,1,1,0,1,1]", (2, 1, 2, 3, 3), (2, 3, 4), 1),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_turn_gives_the_same_result(
    attributes: str,
    weight: tuple[int, ...],
    dims: tuple[int, ...],
    maps: int,
    bias: bool,
    parse: Fn,
    normal: Fn,
    operators: Fn,
    assert_same: Fn,
) -> None:
    names = ",".join("hwd"[: len(dims)])
    text = transposed(attributes, names, "x, W, b" if bias else "x, W")
    model = parse(text, W=normal(*weight), **({"b": normal(maps)} if bias else {}))
    result = turn_conv_transpose(model)
    assert result.changed == 1
    assert operators(result.model) == ["Conv"]
    assert_same(model, result.model, {"x": normal(2, weight[0], *dims)})


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("strides=[2,1]", r"stride is \(2, 1\)"),
        ("pads=[3,0,0,0]", "crops more than the kernel's reach"),
        ("output_shape=[5,5]", "output_shape leaves the padding"),
    ],
)
def test_turn_says_why_not(attributes: str, reason: str, parse: Fn, normal: Fn) -> None:
    model = parse(transposed(attributes), W=normal(2, 2, 3, 3), b=normal(2))
    result = turn_conv_transpose(model)
    assert result.changed == 0
    assert re.search(reason, result.reasons[0])
    assert result.model == model


def test_turn_leaves_weights_that_are_inputs(parse: Fn) -> None:
    model = parse(
        "g (float[n,2,h,w] x, float[2,2,3,3] W) => (float[n,m,p,q] y) { y = ConvTranspose(x, W) }"
    )
    for rewrite in (turn_conv_transpose, split_conv_transpose):
        result = rewrite(model)
        assert result.changed == 0
        assert "not constant" in result.reasons[0]


@pytest.mark.parametrize(
    ("attributes", "weight", "dims", "maps"),
    [
        ("strides=[2,2], pads=[1,1,1,1]", (3, 2, 4, 4), (5, 4), 2),
        ("strides=[2,2]", (19, 1, 2, 2), (1, 1), 1),
        ("strides=[2,2], pads=[0,1,2,1]", (3, 2, 4, 3), (5, 4), 2),
        ("strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", (3, 5, 3, 3), (4, 3), 5),
        ("strides=[3,3], pads=[1,2,0,1]", (3, 2, 5, 4), (2, 7), 2),
        ("strides=[4,4], pads=[0,1,1,0]", (2, 2, 3, 3), (3, 2), 2),
        ("strides=[2,2], group=3, pads=[1,1,1,1]", (6, 2, 4, 4), (3, 4), 6),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_split_gives_the_same_result(
    attributes: str,
    weight: tuple[int, ...],
    dims: tuple[int, ...],
    maps: int,
    bias: bool,
    parse: Fn,
    normal: Fn,
    operators: Fn,
    assert_same: Fn,
) -> None:
    text = transposed(attributes, inputs="x, W, b" if bias else "x, W")
    model = parse(text, W=normal(*weight), **({"b": normal(maps)} if bias else {}))
    result = split_conv_transpose(model)
    assert result.changed == 1
    assert operators(result.model)[:2] == ["Conv", "DepthToSpace"]
    assert_same(model, result.model, {"x": normal(2, weight[0], *dims)})


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("pads=[1,1,1,1]", r"strides are \(1, 1\)"),
        ("strides=[2,3]", r"strides are \(2, 3\)"),
        ("strides=[2,2], dilations=[2,2]", r"dilations are \(2, 2\)"),
        ('strides=[2,2], auto_pad="SAME_UPPER"', "padding is left to the engine"),
        ("strides=[3,3], output_padding=[1,1]", "reaches beyond the kernel"),
    ],
)
def test_split_says_why_not(attributes: str, reason: str, parse: Fn, normal: Fn) -> None:
    model = parse(transposed(attributes), W=normal(2, 2, 3, 3), b=normal(2))
    result = split_conv_transpose(model)
    assert result.changed == 0
    assert re.search(reason, result.reasons[0])
    assert result.model == model
