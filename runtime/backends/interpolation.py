"""Interpolation weights of ONNX Resize and Upsample, one matrix per axis, in NumPy.

Every mode of Resize is separable: along an axis, output = W @ input with a constant matrix W, so
its gradient is a product with the transpose. Used by the torch executor and the gradient rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ModelError

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class ResizeSettings:
    """Attributes of Resize that choose the weights; defaults are those of the operator."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0

    @classmethod
    def from_attributes(
        cls, op_type: str, attributes: dict[str, Any], opset: int
    ) -> ResizeSettings:
        """Read a node; Upsample and Resize before opset 11 are asymmetric and round down."""
        mode = _text(attributes.get("mode", "nearest"))
        if op_type == "Upsample" or opset < 11:
            mode = "linear" if mode in ("bilinear", "trilinear") else mode
            return cls(mode=mode, coordinates="asymmetric", nearest="floor")
        return cls(
            mode=mode,
            coordinates=_text(attributes.get("coordinate_transformation_mode", "half_pixel")),
            nearest=_text(attributes.get("nearest_mode", "round_prefer_floor")),
            cubic_a=float(attributes.get("cubic_coeff_a", -0.75)),
            exclude_outside=bool(attributes.get("exclude_outside", 0)),
            antialias=bool(attributes.get("antialias", 0)),
            extrapolation=float(attributes.get("extrapolation_value", 0.0)),
        )


def target_axes(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    scales: NDArray[Any] | None,
    sizes: NDArray[Any] | None,
    policy: str = "stretch",
) -> list[tuple[int, float]]:
    """Output length and scale of each of `axes`, from `scales` or `sizes`.

    `policy`: keep_aspect_ratio_policy, which of the factors `sizes` ask for is applied to all.

    Raises: ModelError where neither is given.
    """
    lengths = [shape[axis] for axis in axes]
    if scales is not None and scales.size:
        factors = [float(s) for s in scales]
        # The product is taken in float32, as the engines do, before rounding down.
        return [
            (int(np.floor(np.float32(n) * np.float32(s))), s)
            for n, s in zip(lengths, factors, strict=True)
        ]
    if sizes is None:
        raise ModelError("Resize has neither scales nor sizes; one of them is needed.")
    targets = [int(s) for s in sizes]
    if policy == "stretch":
        return [(t, t / n) for t, n in zip(targets, lengths, strict=True)]
    choose = min if policy == "not_larger" else max
    factor = choose(t / n for t, n in zip(targets, lengths, strict=True))
    return [(math.floor(factor * n + 0.5), factor) for n in lengths]


def source_coordinates(
    settings: ResizeSettings, length: int, target: int, scale: float, roi: tuple[float, float]
) -> Any:
    """Position in the input of each output sample, (target,).

    In float32 for nearest, so that ties and integers fall as they do in the engines; for the same
    reason a length stands for itself, never for scale times the input's length, in align_corners.
    """
    real: Any = np.float32 if settings.mode == "nearest" else np.float64
    x: Any = np.arange(target).astype(real)
    s, half = real(scale), real(0.5)
    kind = settings.coordinates
    if kind == "align_corners":
        return x * real(0 if target == 1 else (length - 1) / (target - 1))
    if kind == "asymmetric":
        return x / s
    if kind == "tf_half_pixel_for_nn":
        return (x + half) / s
    if kind == "tf_crop_and_resize":
        return _cropped(x, length, roi)
    if kind == "pytorch_half_pixel" and target == 1:
        return np.zeros(1, real)
    if kind in ("half_pixel", "pytorch_half_pixel"):
        return (x + half) / s - half
    if kind == "half_pixel_symmetric":
        offset = real(length / 2) * (1 - real(target) / (s * real(length)))
        return offset + ((x + half) / s - half)
    raise ModelError(f"Resize has the unknown coordinate_transformation_mode '{kind}'.")


def _cropped(x: NDArray[Any], length: int, roi: tuple[float, float]) -> Any:
    # float32 in the engines' order of operations: it decides what lies outside by a rounding.
    start, end, last = (np.float32(v) for v in (*roi, length - 1))
    if len(x) == 1:
        return np.full(1, np.float32(0.5) * (start + end) * last)
    steps = x.astype(np.float32) * (end - start) * last / np.float32(len(x) - 1)
    return start * last + steps


def interpolation_matrix(
    settings: ResizeSettings,
    length: int,
    target: int,
    scale: float,
    roi: tuple[float, float] = (0.0, 1.0),
) -> tuple[Weights, NDArray[np.bool_]]:
    """Weights W (target, length), float64, and which outputs extrapolate (target,).

    output[i] = sum_j W[i, j] input[j]; rows that extrapolate are zero.
    Raises: ModelError for an unknown mode.
    """
    x = source_coordinates(settings, length, target, scale, roi)
    if settings.mode == "nearest":
        matrix = _scatter(_round(x, settings.nearest)[:, None], np.ones((target, 1)), length)
    elif settings.mode in ("linear", "cubic"):
        matrix = _filtered(settings, x, length, scale)
    else:
        raise ModelError(
            f"Resize has mode '{settings.mode}'; nearest, linear and cubic are supported."
        )
    outside = np.zeros(target, bool)
    if settings.coordinates == "tf_crop_and_resize":
        outside = np.asarray((x < 0) | (x > length - 1))
        matrix[outside] = 0.0
    return matrix, outside


def _filtered(settings: ResizeSettings, x: NDArray[Any], length: int, scale: float) -> Weights:
    reach = 1.0 if settings.mode == "linear" else 2.0
    stretch = min(scale, 1.0) if settings.antialias else 1.0
    span = math.ceil(reach / stretch)
    base = np.floor(x).astype(int)
    index = base[:, None] + np.arange(1 - span, span + 1)
    distance = (index - x[:, None]) * stretch
    if settings.mode == "linear":
        weight = np.clip(1.0 - np.abs(distance), 0.0, 1.0)
    else:
        weight = _cubic(np.abs(distance), settings.cubic_a)
    if settings.exclude_outside:
        weight = np.where((index >= 0) & (index < length), weight, 0.0)
    if settings.exclude_outside or settings.antialias:
        total = weight.sum(axis=1, keepdims=True)
        weight = weight / np.where(total == 0, 1.0, total)
    return _scatter(index, weight, length)


def _cubic(t: Weights, a: float) -> Weights:
    # Keys (1981), eq. 4: the piecewise cubic on |t| < 1 and 1 <= |t| < 2.
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def _scatter(index: NDArray[Any], weight: Weights, length: int) -> Weights:
    matrix = np.zeros((index.shape[0], length))
    rows = np.broadcast_to(np.arange(index.shape[0])[:, None], index.shape)
    np.add.at(matrix, (rows, np.clip(index, 0, length - 1)), weight)
    return matrix


def _round(x: NDArray[Any], how: str) -> NDArray[np.int64]:
    rounded: NDArray[Any]
    if how == "round_prefer_floor":
        rounded = np.ceil(x - x.dtype.type(0.5))
    elif how == "round_prefer_ceil":
        rounded = np.floor(x + x.dtype.type(0.5))
    elif how == "floor":
        rounded = np.floor(x)
    elif how == "ceil":
        rounded = np.ceil(x)
    else:
        raise ModelError(f"Resize has the unknown nearest_mode '{how}'.")
    return rounded.astype(np.int64)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
