"""What the terms of F2PAD demand of their arrays; see `checks`, whose words these are."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from unblemish.errors import ConfigError, ShapeError
from unblemish.kernels.checks import Shape, _apart, _array, _image
from unblemish.kernels.device_array import DeviceArray


def total_variation(n: Any, weight: Any, *, gradient: Any, value: Any) -> None:
    """Check the arguments of `ImageTerms.total_variation`. Raises: ShapeError."""
    _term("total_variation", n, weight, None, gradient, value, {})


def log_penalty(
    x: Any, n: Any, weight: Any, free: Any, *, epsilon: float, gradient: Any, value: Any
) -> None:
    """Check the arguments of `ImageTerms.log_penalty`.

    Raises: ShapeError; ConfigError for epsilon that is not > 0.
    """
    shape = _term("log_penalty", n, weight, free, gradient, value, {"x": x})
    _array("log_penalty", "x", x, shape)
    _positive("log_penalty", epsilon=epsilon)


def mixture_prior(
    n: Any, means: Any, precisions: Any, weight: Any, free: Any, *, gradient: Any, value: Any
) -> None:
    """Check the arguments of `ImageTerms.mixture_prior`. Raises: ShapeError."""
    where = "mixture_prior"
    inputs = {"means": means, "precisions": precisions}
    channels = _term(where, n, weight, free, gradient, value, inputs)[1]
    found = _array(where, "means", means, None)
    if len(found) != 2 or found[0] < 1 or found[1] != channels:
        raise ShapeError(
            f"{where}: means must be (components, {channels}) with at least one component, "
            f"found {found}."
        )
    _array(where, "precisions", precisions, (found[0], channels, channels))


def sharing_weights(
    x: Any, *, radius: int, sigma_space: float, sigma_colour: float, weights: Any
) -> None:
    """Check the arguments of `ImageTerms.sharing_weights`.

    Raises: ShapeError; ConfigError for radius < 0 or a sigma that is not > 0.
    """
    where = "sharing_weights"
    shape = _image(where, x)
    _array(where, "weights", weights, _table(where, shape, radius), np.float16, out=True)
    _positive(where, sigma_space=sigma_space, sigma_colour=sigma_colour)
    _apart(where, {"weights": weights}, {"x": x})


def share_gradient(gradient: Any, weights: Any, *, radius: int, shared: Any) -> None:
    """Check the arguments of `ImageTerms.share_gradient`.

    Raises: ShapeError; ConfigError for radius < 0.
    """
    where = "share_gradient"
    shape = _image(where, gradient, "gradient")
    _array(where, "weights", weights, _table(where, shape, radius), np.float16)
    _array(where, "shared", shared, shape, out=True)
    _apart(where, {"shared": shared}, {"gradient": gradient, "weights": weights})


def share_gradient_direct(
    gradient: Any, x: Any, *, radius: int, sigma_space: float, sigma_colour: float, shared: Any
) -> None:
    """Check the arguments of `ImageTerms.share_gradient_direct`.

    Raises: ShapeError; ConfigError for radius < 0 or a sigma that is not > 0.
    """
    where = "share_gradient_direct"
    shape = _image(where, gradient, "gradient")
    _array(where, "x", x, shape)
    _array(where, "shared", shared, shape, out=True)
    _table(where, shape, radius)
    _positive(where, sigma_space=sigma_space, sigma_colour=sigma_colour)
    _apart(where, {"shared": shared}, {"gradient": gradient, "x": x})


def adan(
    n: Any,
    x: Any,
    g: Any,
    first: Any,
    slope: Any,
    second: Any,
    previous: Any,
    free: Any,
    *,
    step: int,
    rate: Any,
    clip: float,
    lower: float,
    upper: float,
    floor: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
) -> None:
    """Check the arguments of `ImageTerms.adan`.

    Raises: ShapeError; ConfigError for step < 1, lower > upper, clip or floor that is not > 0,
        eps < 0, or a beta outside [0, 1).
    """
    shape = _image("adan", x)
    moments = {"first": first, "slope": slope, "second": second, "previous": previous}
    outputs = {"n": n, **moments}
    for name, array in outputs.items():
        _array("adan", name, array, shape, out=True)
    _array("adan", "g", g, shape)
    _array("adan", "rate", rate, shape[:1])
    _free("adan", free, shape)
    _apart("adan", outputs, {"x": x, "g": g, "rate": rate, "free": free})
    if not step >= 1:
        raise ConfigError(f"adan: step counts from 1, found {step}.")
    if not lower <= upper:
        raise ConfigError(f"adan: the box [{lower}, {upper}] is empty; give lower <= upper.")
    _positive("adan", clip=clip, floor=floor)
    if not eps >= 0:
        raise ConfigError(f"adan: eps must be >= 0, found {eps}.")
    for name, beta in {"beta1": beta1, "beta2": beta2, "beta3": beta3}.items():
        if not 0 <= beta < 1:
            raise ConfigError(f"adan: {name} must lie in [0, 1), found {beta}.")


def _term(
    where: str, n: Any, weight: Any, free: Any, gradient: Any, value: Any, inputs: dict[str, Any]
) -> Shape:
    """What the terms have in common: n, weight, maybe free; gradient and value, added to."""
    shape = _image(where, n, "n")
    _array(where, "weight", weight, shape[:1])
    if free is not None:
        _free(where, free, shape)
        inputs = {**inputs, "free": free}
    _array(where, "gradient", gradient, shape, out=True)
    _array(where, "value", value, shape[:1], np.float64, out=True)
    arrays = {
        name: array
        for name, array in inputs.items()
        if isinstance(array, (np.ndarray, DeviceArray))
    }
    _apart(where, {"gradient": gradient, "value": value}, {"n": n, "weight": weight, **arrays})
    return shape


def _free(where: str, free: Any, shape: Shape) -> None:
    _array(where, "free", free, (shape[0], 1, *shape[2:]), np.uint8)


def _table(where: str, shape: Shape, radius: Any) -> Shape:
    try:
        count = operator.index(radius)
    except TypeError:
        count = -1
    if not 0 <= count < 1 << 15:
        raise ConfigError(f"{where}: radius must be a whole number >= 0, found {radius!r}.")
    return (shape[0], (2 * count + 1) ** 2, *shape[2:])


def _positive(where: str, **settings: float) -> None:
    for name, setting in settings.items():
        if not setting > 0:
            raise ConfigError(f"{where}: {name} must be > 0, found {setting}.")
