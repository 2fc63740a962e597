"""Rules of `resize.py`: against torch's interpolation, and against differences of the engine.

Resize is linear, so differences of any step are exact: ONNX Runtime takes them in float32. In
float64 it keeps the coordinates in float32 or lacks the operator, and the standard's reference
places fractional lengths otherwise than the engines do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser
from torch.nn import functional as F

from unblemish.errors import UnsupportedOperatorError
from unblemish.export import differentiate

Check = Callable[..., Any]


def model(
    attributes: str,
    *,
    scales: str | None = None,
    sizes: str | None = None,
    shape: str = "2, 3, 5, 7",
    roi: str | None = None,
    opset: int = 21,
) -> onnx.ModelProto:
    """One Resize; its output's shape is left to inference."""
    count = len((scales or sizes or "").split(","))
    given = f"float[{count}] s = {{{scales}}}" if scales else f"int64[{count}] s = {{{sizes}}}"
    region = f"float[{2 * count}] r = {{{roi}}}, " if roi else ""
    inputs = f"x, {'r' if roi else ''}, s" if scales else f"x, {'r' if roi else ''}, , s"
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> g (float[{shape}] x) => (float[] y) '
        f"<{region}{given}> {{ y = Resize<{attributes}>({inputs}) }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


# float32 sums over a few hundred samples.
TOLERANCE = 1e-4


@pytest.fixture
def check(check_gradients: Check) -> Check:
    """`check_gradients` with differences of the engine's own float32 operator."""

    def run(proto: onnx.ModelProto, function: Any = None, **settings: Any) -> Any:
        result = check_gradients(proto, function, differences=False, **settings)
        differences(proto, result, settings.get("sizes", {}), settings.get("inputs", {}))
        return result

    return run


def differences(proto: onnx.ModelProto, result: Any, sizes: Any, inputs: Any) -> None:
    rng = np.random.default_rng(7)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    shape = [d.dim_value or sizes[d.dim_param] for d in dims]
    x, direction = rng.normal(size=(2, *shape)).astype(np.float32)
    engine, fused = (
        onnxruntime.InferenceSession(m.SerializeToString()) for m in (proto, result.fused)
    )
    ahead, behind = (
        engine.run(None, {"x": v, **inputs})[0] for v in (x + direction, x - direction)
    )
    ct = rng.normal(size=ahead.shape).astype(np.float32)
    grad = fused.run(["grad_x"], {"x": x, "ct_y": ct, **inputs})[0]
    expected = float(np.vdot(ct, ahead - behind)) / 2
    assert abs(float(np.vdot(grad, direction)) - expected) < TOLERANCE * max(1.0, abs(expected))


def operators(result: Any) -> list[str]:
    return [node.op_type for node in result.backward.graph.node]


SHAPES = ["2, 3, 5, 7", "N, 3, H, W"]
SIZES = {"N": 2, "H": 5, "W": 7}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "coordinates",
    [
        'coordinate_transformation_mode = "half_pixel"',
        'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        'coordinate_transformation_mode = "pytorch_half_pixel", nearest_mode = "round_prefer_ceil"',
        'coordinate_transformation_mode = "half_pixel_symmetric"',
    ],
)
@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (4, 5)])
def test_repeated_pixels_become_sums_over_blocks(
    factors: tuple[int, int], coordinates: str, shape: str, check: Check
) -> None:
    result = check(
        model(coordinates, scales=f"1, 1, {factors[0]}, {factors[1]}", shape=shape),
        lambda x: x.repeat_interleave(factors[0], 2).repeat_interleave(factors[1], 3),
        sizes=SIZES,
    )
    assert operators(result) == ["AveragePool", "Mul"]


def test_sizes_that_repeat_pixels_are_recognised(check: Check) -> None:
    result = check(
        model('mode = "nearest"', sizes="2, 3, 10, 21"),
        lambda x: F.interpolate(x, size=(10, 21), mode="nearest"),
    )
    assert operators(result) == ["AveragePool", "Mul"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(10, 14), (3, 11), (1, 4)])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_smooth_gradient_equals_torch(
    mode: str, align: bool, size: tuple[int, int], shape: str, check: Check
) -> None:
    kind = "align_corners" if align else "half_pixel"
    check(
        model(
            f'mode = "{mode}", coordinate_transformation_mode = "{kind}"',
            sizes=f"2, 3, {size[0]}, {size[1]}",
            shape=shape.replace("N", "2"),
        ),
        lambda x: F.interpolate(x, size=size, mode=f"bi{mode}", align_corners=align),
        sizes=SIZES,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scales", [(2.0, 3.0), (0.6, 0.8), (1.7, 0.4)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_scaled_gradient_equals_torch(
    mode: str, scales: tuple[float, float], shape: str, check: Check
) -> None:
    kind = "asymmetric" if mode == "nearest" else "half_pixel"
    settings = {
        "nearest": {},
        "linear": {"align_corners": False},
        "cubic": {"align_corners": False},
    }
    name = "nearest" if mode == "nearest" else f"bi{mode}"
    check(
        model(
            f'mode = "{mode}", coordinate_transformation_mode = "{kind}", nearest_mode = "floor"',
            scales=f"1.0, 1.0, {scales[0]}, {scales[1]}",
            shape=shape,
        ),
        lambda x: F.interpolate(
            x, scale_factor=scales, mode=name, recompute_scale_factor=False, **settings[mode]
        ),
        sizes=SIZES,
    )


@pytest.mark.parametrize("shape", ["2, 3, 5", "N, 3, L", "2, 1, 3, 4, 5", "N, 1, D, 4, W"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_other_ranks_equal_torch(mode: str, shape: str, check: Check) -> None:
    volume = shape.count(",") == 4
    scales = "1, 1, 2, 1.5, 3" if volume else "1, 1, 1.6"
    factor = tuple(float(s) for s in scales.split(",")[2:])
    smooth = {"mode": "trilinear" if volume else "linear", "align_corners": False}
    kind = "asymmetric" if mode == "nearest" else "half_pixel"
    check(
        model(
            f'mode = "{mode}", coordinate_transformation_mode = "{kind}", nearest_mode = "floor"',
            scales=scales,
            shape=shape,
        ),
        lambda x: F.interpolate(
            x, scale_factor=factor, **(smooth if mode == "linear" else {"mode": "nearest"})
        ),
        sizes={"N": 2, "L": 5, "D": 3, "W": 5},
    )


COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
FILTERS = {
    "nearest floor": 'mode = "nearest", nearest_mode = "floor"',
    "nearest ceil": 'mode = "nearest", nearest_mode = "ceil"',
    "nearest half down": 'mode = "nearest", nearest_mode = "round_prefer_floor"',
    "nearest half up": 'mode = "nearest", nearest_mode = "round_prefer_ceil"',
    "linear": 'mode = "linear"',
    "linear antialias": 'mode = "linear", antialias = 1',
    "cubic": 'mode = "cubic", cubic_coeff_a = -0.5',
    "cubic inside": 'mode = "cubic", exclude_outside = 1',
    "cubic antialias": 'mode = "cubic", antialias = 1, exclude_outside = 1',
}


@pytest.mark.parametrize("shape", ["1, 1, 5, 7", "1, 1, H, W"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", FILTERS)
def test_every_mode_equals_central_differences(
    kind: str, coordinates: str, shape: str, check: Check
) -> None:
    if kind in ("nearest floor", "nearest ceil") and coordinates == "half_pixel_symmetric":
        pytest.skip("the centre falls on an integer: which way, is the engine's rounding")
    roi = "0, 0, 0.1, 0.2, 1, 1, 0.9, 1.15"
    check(
        model(
            f'{FILTERS[kind]}, coordinate_transformation_mode = "{coordinates}"',
            scales="1, 1, 2.3, 0.7" if "H" in shape else "1, 1, 0.3, 1.7",
            shape=shape,
            roi=roi if coordinates == "tf_crop_and_resize" else None,
        ),
        sizes=SIZES,
    )


def test_axes_and_policy_choose_what_is_resized(check: Check) -> None:
    check(
        model('mode = "linear", axes = [-1, 2]', scales="2, 1.5"),
        lambda x: F.interpolate(x, scale_factor=(1.5, 2), mode="bilinear"),
    )
    check(
        model(
            'mode = "linear", axes = [2, 3], keep_aspect_ratio_policy = "not_larger"',
            sizes="10, 10",
        ),
        lambda x: _by_factor(x, 10 / 7, (7, 10)),
    )


def _by_factor(x: torch.Tensor, factor: float, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear sampling at (i + 1/2) / factor - 1/2, written out."""
    for axis, target in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        place = (np.arange(target) + 0.5) / factor - 0.5
        near = np.floor(place).astype(int)
        weight = torch.tensor(place - near, dtype=x.dtype)
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        low, high = (torch.tensor(np.clip(near + i, 0, length - 1)) for i in (0, 1))
        weight = weight.reshape(shape)
        x = x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight
    return x


@pytest.mark.parametrize("given", ["scales", "sizes"])
def test_computed_targets_equal_torch(given: str, check: Check) -> None:
    kind = "float[4] s" if given == "scales" else "int64[4] s"
    call = "x, , s" if given == "scales" else "x, , , s"
    value = np.array([1, 1, 2, 1.5], np.float32) if given == "scales" else np.array([2, 1, 8, 6])
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> '
        f"g (float[N, 1, 4, W] x, {kind}) => (float[a, b, c, d] y) "
        f'{{ y = Resize<mode = "linear">({call}) }}'
    )
    check(
        proto,
        lambda x, s: F.interpolate(x, size=(8, 6), mode="bilinear"),
        wrt=["x"],
        sizes={"N": 2, "W": 4},
        inputs={"s": value},
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_equals_torch(mode: str, check: Check) -> None:
    proto = parser.parse_model(
        '<ir_version: 4, opset_import: ["": 9]> '
        "g (float[1, 2, 3, 4] x) => (float[1, 2, 6, 8] y) <float[4] s = {1, 1, 2, 2}> "
        f'{{ y = Upsample<mode = "{mode}">(x, s) }}'
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        if mode == "nearest":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        rows = torch.stack([x, (x + torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)) / 2], 3)
        x = rows.reshape(1, 2, 6, 4)
        columns = torch.stack([x, (x + torch.cat([x[..., 1:], x[..., -1:]], 3)) / 2], 4)
        return columns.reshape(1, 2, 6, 8)

    check(proto, function)


def test_policy_with_symbolic_lengths_is_refused() -> None:
    proto = model(
        'axes = [2, 3], keep_aspect_ratio_policy = "not_larger"', sizes="10, 10", shape="1, 1, H, W"
    )
    with pytest.raises(UnsupportedOperatorError, match="keep_aspect_ratio_policy"):
        differentiate(proto, ["x"])


def test_size_made_of_the_batch_is_known_where_branches_meet(check_gradients: Check) -> None:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> '
        "g (float[batch, 2, 3, 4] x, float[batch, 2, 6, 8] other) => (float[batch, 2, 6, 8] y) "
        "<int64[2] sides = {6, 8}> {"
        " kept = Shape<end = 2>(x)"
        " s = Concat<axis = 0>(kept, sides)"
        ' wide = Resize<mode = "linear", keep_aspect_ratio_policy = "stretch">(x, , , s)'
        " y = Add(wide, other) }"
    )

    def function(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return other + F.interpolate(x, size=(6, 8), mode="bilinear", align_corners=False)

    result = check_gradients(proto, function, differences=False, sizes={"batch": 3})
    # A gradient that asks at run time what was broadcast sums over axes found by NonZero.
    assert not {"ReduceSum", "NonZero"} & {node.op_type for node in result.fused.graph.node}
