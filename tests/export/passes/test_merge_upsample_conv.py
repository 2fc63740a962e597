"""Doubling and convolution in one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.export.passes.merge_upsample_conv import doubled_kernel, merge_upsample_conv

Fn = Callable[..., Any]
RESIZE = (
    'Resize<mode="nearest", coordinate_transformation_mode="{coordinates}", '
    'nearest_mode="{rounding}">(x, , scales)'
)


def upsample_conv(
    conv: str = "pads=[1,1,1,1]",
    coordinates: str = "asymmetric",
    rounding: str = "floor",
    bias: bool = True,
) -> str:
    resize = RESIZE.format(coordinates=coordinates, rounding=rounding)
    inputs = "u, W, b" if bias else "u, W"
    return (
        "g (float[n,C,h,w] x) => (float[n,m,p,q] y) {"
        "scales = Constant<value_floats=[1.0,1.0,2.0,2.0]>()"
        f"u = {resize} y = Conv<{conv}>({inputs}) }}"
    )


@pytest.mark.parametrize(("channels", "maps"), [(1, 1), (3, 2), (19, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_merge_gives_the_same_image(
    channels: int, maps: int, bias: bool, parse: Fn, normal: Fn, operators: Fn, assert_same: Fn
) -> None:
    weights = {"W": normal(maps, channels, 3, 3)} | ({"b": normal(maps)} if bias else {})
    model = parse(upsample_conv(bias=bias), **weights)
    result = merge_upsample_conv(model)
    assert result.changed == 1
    assert "Resize" not in operators(result.model)
    assert [op for op in operators(result.model) if op != "Constant"] == ["ConvTranspose"]
    feeds = [{"x": normal(n, channels, h, w)} for n, h, w in ((1, 1, 1), (2, 5, 3), (1, 4, 19))]
    assert_same(model, result.model, *feeds)


@pytest.mark.parametrize(
    ("kernel", "pads", "group"),
    [
        ((1, 1), [0, 0, 0, 0], 1),
        ((5, 5), [2, 2, 2, 2], 1),
        ((3, 2), [0, 1, 2, 0], 1),
        ((4, 4), [3, 0, 1, 2], 1),
        ((3, 3), [1, 1, 1, 1], 2),
    ],
)
def test_merge_takes_any_kernel_padding_and_group(
    kernel: tuple[int, int], pads: list[int], group: int, parse: Fn, normal: Fn, assert_same: Fn
) -> None:
    model = parse(
        upsample_conv(f"pads={pads}, group={group}"),
        W=normal(6, 4 // group, *kernel),
        b=normal(6),
    )
    result = merge_upsample_conv(model)
    assert result.changed == 1
    assert_same(model, result.model, {"x": normal(2, 4, 4, 3)})


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_merge_resolves_auto_pad(auto_pad: str, parse: Fn, normal: Fn, assert_same: Fn) -> None:
    conv = f'auto_pad="{auto_pad}"'
    model = parse(upsample_conv(conv), W=normal(3, 2, 4, 2), b=normal(3))
    result = merge_upsample_conv(model)
    assert result.changed == 1
    assert_same(model, result.model, {"x": normal(1, 2, 5, 4)})


def test_merge_takes_one_and_three_dimensions(parse: Fn, normal: Fn, assert_same: Fn) -> None:
    for rank, dims in ((1, "h"), (3, "h,w,d")):
        text = (
            f"g (float[n,2,{dims}] x) => (float[n,3,{dims.upper()}] y) {{"
            f"scales = Constant<value_floats={[1.0, 1.0] + [2.0] * rank}>()"
            'u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
            'nearest_mode="floor">(x, , scales)'
            f"y = Conv<pads={[1] * 2 * rank}>(u, W) }}"
        )
        model = parse(text, W=normal(3, 2, *[3] * rank))
        result = merge_upsample_conv(model)
        assert result.changed == 1
        assert_same(model, result.model, {"x": normal(2, 2, *range(3, 3 + rank))})


@pytest.mark.parametrize(
    ("coordinates", "rounding", "merged"),
    [
        ("half_pixel", "round_prefer_floor", True),
        ("half_pixel", "round_prefer_ceil", True),
        ("pytorch_half_pixel", "round_prefer_floor", True),
        ("asymmetric", "round_prefer_floor", True),
        ("asymmetric", "round_prefer_ceil", False),
        ("asymmetric", "ceil", False),
        ("half_pixel", "floor", False),
        ("align_corners", "round_prefer_floor", False),
    ],
)
def test_merge_follows_the_coordinates_of_resize(
    coordinates: str, rounding: str, merged: bool, parse: Fn, normal: Fn, assert_same: Fn
) -> None:
    text = upsample_conv(coordinates=coordinates, rounding=rounding)
    model = parse(text, W=normal(2, 3, 3, 3), b=normal(2))
    result = merge_upsample_conv(model)
    assert result.changed == int(merged)
    if not merged:
        assert "repeat each pixel" in result.reasons[0]
    assert_same(model, result.model, {"x": normal(1, 3, 4, 7)})


def test_merge_takes_sizes_of_static_shapes(parse: Fn, normal: Fn, assert_same: Fn) -> None:
    model = parse(
        "g (float[n,2,4,5] x) => (float[n,3,8,10] y) {"
        "full = Constant<value_ints=[1,2,8,10]>()"
        'u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, , , full) y = Conv<pads=[1,1,1,1]>(u, W) }',
        W=normal(3, 2, 3, 3),
    )
    static = parse(
        "g (float[1,2,4,5] x) => (float[1,3,8,10] y) {"
        "full = Constant<value_ints=[1,2,8,10]>()"
        'u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, , , full) y = Conv<pads=[1,1,1,1]>(u, W) }',
        W=normal(3, 2, 3, 3),
    )
    assert merge_upsample_conv(model).changed == 0  # the batch becomes 1, whatever n is
    result = merge_upsample_conv(static)
    assert result.changed == 1
    assert_same(static, result.model, {"x": normal(1, 2, 4, 5)})


def test_merge_takes_the_old_upsample(parse: Fn, normal: Fn, run: Fn) -> None:
    text = (
        "g (float[n,2,h,w] x) => (float[n,3,p,q] y) {"
        "scales = Constant<value = float[4] {1,1,2,2}>()"
        'u = Upsample<mode="nearest">(x, scales) y = Conv<pads=[1,1,1,1]>(u, W) }'
    )
    model = parse(text, opset=9, W=normal(3, 2, 3, 3))
    result = merge_upsample_conv(model)
    assert result.changed == 1
    x = {"x": normal(1, 2, 3, 5)}
    np.testing.assert_allclose(run(model, x)[0], run(result.model, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (upsample_conv("pads=[1,1,1,1], strides=[2,2]"), r"strides \(2, 2\)"),
        (upsample_conv("pads=[2,2,2,2], dilations=[2,2]"), r"dilations \(2, 2\)"),
        (upsample_conv("pads=[3,3,3,3]"), "pads by its whole kernel"),
        (upsample_conv().replace('"nearest"', '"linear"'), "its mode is linear"),
        (upsample_conv().replace("2.0,2.0", "2.0,3.0"), "double every spatial dimension"),
        (upsample_conv().replace("1.0,1.0", "2.0,1.0"), "double every spatial dimension"),
        (
            upsample_conv().replace("y)", "y, float[n,C,p,q] u)"),
            "no Conv alone reads the enlarged tensor",
        ),
        (
            upsample_conv().replace("g (", "g (float[2,3,3,3] W, "),
            "weight of Conv .* is not constant",
        ),
    ],
)
def test_merge_says_why_not(text: str, reason: str, parse: Fn, normal: Fn) -> None:
    given = "float[2,3,3,3] W" in text
    model = parse(text, b=normal(2), **({} if given else {"W": normal(2, 3, 3, 3)}))
    result = merge_upsample_conv(model)
    assert result.changed == 0
    assert len(result.reasons) == 1
    assert re.search(reason, result.reasons[0])
    assert result.model == model


def test_doubled_kernel_keeps_the_sum_of_the_weights(normal: Fn) -> None:
    weight = normal(3, 2, 3, 3).astype(np.float64)
    np.testing.assert_allclose(doubled_kernel(weight).sum((2, 3)).T, 4 * weight.sum((2, 3)))
