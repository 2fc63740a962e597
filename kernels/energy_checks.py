"""What the terms of energy projection demand of their arrays, in the words of `checks`."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from unblemish.errors import ConfigError
from unblemish.kernels.checks import (
    Shape,
    _apart,
    _array,
    _image,
    _mask,
    _per_item,
    all_at_least_zero,
)

LARGEST_WINDOW = 511


def dssim(
    x: Any,
    g: Any,
    scale: Any,
    *,
    data_range: float,
    dissimilarity: Any,
    direct: Any,
    cotangent: Any,
    objective: Any,
    window: int,
    sigma: float,
) -> None:
    """Check the arguments of `EnergyTerms.dssim`.

    Raises: ShapeError; ConfigError for a window that is even or not in [1, 511], or a data range or
        sigma that is not a finite number > 0.
    """
    where = "dssim"
    shape = _image(where, x)
    _array(where, "g", g, shape)
    _per_item(where, shape[0], scale=scale)
    outputs = {"objective": objective}
    _array(where, "objective", objective, shape[:1], np.float64, out=True)
    one_row = (shape[0], 1, *shape[2:])
    for name, array, expected in (
        ("dissimilarity", dissimilarity, one_row),
        ("direct", direct, shape),
        ("cotangent", cotangent, shape),
    ):
        if array is not None:
            _array(where, name, array, expected, out=True)
            outputs[name] = array
    _apart(where, outputs, {"x": x, "g": g, "scale": scale})
    _window(where, window)
    _positive(where, data_range=data_range, sigma=sigma)


def gaussian_nll(
    x: Any,
    g: Any,
    log_scale: Any,
    scale: Any,
    *,
    cotangent: Any,
    log_scale_cotangent: Any,
    objective: Any,
) -> None:
    """Check the arguments of `EnergyTerms.gaussian_nll`. Raises: ShapeError."""
    where = "gaussian_nll"
    shape = _image(where, x)
    _array(where, "g", g, shape)
    _mask(where, "log_scale", log_scale, shape)
    _per_item(where, shape[0], scale=scale)
    _array(where, "cotangent", cotangent, shape, out=True)
    _array(where, "log_scale_cotangent", log_scale_cotangent, np.shape(log_scale), out=True)
    _array(where, "objective", objective, shape[:1], np.float64, out=True)
    outputs = {
        "cotangent": cotangent,
        "log_scale_cotangent": log_scale_cotangent,
        "objective": objective,
    }
    _apart(where, outputs, {"x": x, "g": g, "log_scale": log_scale, "scale": scale})


def half_variance(log_scale: Any, *, out: Any) -> None:
    """Check the arguments of `CudaEnergyTerms.half_variance`. Raises: ShapeError."""
    where = "half_variance"
    shape = _image(where, log_scale, "log_scale")
    _array(where, "out", out, shape, out=True)
    _apart(where, {"out": out}, {"log_scale": log_scale})


def blend(
    x: Any,
    made: Any,
    free: Any,
    *,
    ended: Any,
    roughness: Any,
    largest_change: Any,
    lower: float,
    upper: float,
) -> None:
    """Check the arguments of `CudaEnergyTerms.blend`. Raises: ShapeError; ConfigError."""
    where = "blend"
    shape = _image(where, made, "made")
    _array(where, "x", x, shape, out=True)
    _array(where, "free", free, (shape[0], 1, *shape[2:]))
    _array(where, "ended", ended, shape[:1], np.int32)
    outputs = {"roughness": roughness, "largest_change": largest_change}
    for name, array in outputs.items():
        _array(where, name, array, shape[:1], np.float64, out=True)
    _apart(where, {"x": x, **outputs}, {"made": made, "free": free, "ended": ended})
    _box(where, lower, upper)


def energy_step(
    x: Any,
    start: Any,
    pulled: Any,
    lam: Any,
    rate: Any,
    *,
    direct: Any,
    mask: Any,
    restored: Any,
    first: Any,
    second: Any,
    l1: Any,
    squared_change: Any,
    largest_change: Any,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    lower: float,
    upper: float,
) -> None:
    """Check the arguments of `EnergyTerms.energy_step`.

    Raises: ShapeError; ConfigError for one moment without the other, lam or rate that is not >= 0,
        step < 1, lower > upper, eps < 0, or a beta outside [0, 1).
    """
    where = "energy_step"
    shape = _image(where, start, "start")
    moments = _given(where, shape, out=True, first=first, second=second)
    inputs = _given(where, shape, pulled=pulled, direct=direct, restored=restored)
    _array(where, "pulled", pulled, shape)
    _array(where, "x", x, shape, out=True)
    if mask is not None:
        _mask(where, "mask", mask, shape)
        inputs["mask"] = mask
    _per_item(where, shape[0], lam=lam, rate=rate)
    sums = {"l1": l1, "squared_change": squared_change, "largest_change": largest_change}
    for name, array in sums.items():
        _array(where, name, array, shape[:1], np.float64, out=True)
    outputs = {"x": x, **moments, **sums}
    _apart(where, outputs, {"start": start, "lam": lam, "rate": rate, **inputs})
    if len(moments) == 1:
        raise ConfigError(f"{where}: Adam needs first and second; give both, or None for both.")
    for name, array in {"lam": lam, "rate": rate}.items():
        if not all_at_least_zero(array):
            raise ConfigError(f"{where}: every {name} must be >= 0, found {float(np.min(array))}.")
    _adam(where, step, beta1, beta2, eps)
    _box(where, lower, upper)


def _box(where: str, lower: float, upper: float) -> None:
    if not lower <= upper:
        raise ConfigError(f"{where}: the box [{lower}, {upper}] is empty; give lower <= upper.")


def _given(where: str, shape: Shape, *, out: bool = False, **arrays: Any) -> dict[str, Any]:
    """Those that are not None, checked."""
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        _array(where, name, array, shape, out=out)
    return given


def _adam(where: str, step: int, beta1: float, beta2: float, eps: float) -> None:
    if not step >= 1:
        raise ConfigError(f"{where}: step counts from 1, found {step}.")
    if not eps >= 0:
        raise ConfigError(f"{where}: eps must be >= 0, found {eps}.")
    for name, beta in {"beta1": beta1, "beta2": beta2}.items():
        if not 0 <= beta < 1:
            raise ConfigError(f"{where}: {name} must lie in [0, 1), found {beta}.")


def _window(where: str, window: Any) -> None:
    try:
        side = operator.index(window)
    except TypeError:
        side = 0
    if not (1 <= side <= LARGEST_WINDOW and side % 2 == 1):
        raise ConfigError(
            f"{where}: window must be an odd whole number from 1 to {LARGEST_WINDOW}, "
            f"found {window!r}."
        )


def _positive(where: str, **settings: float) -> None:
    for name, setting in settings.items():
        if not (setting > 0 and math.isfinite(setting)):
            raise ConfigError(f"{where}: {name} must be a finite number > 0, found {setting}.")
