"""The terms of F2PAD refuse what does not fit, every implementation in the same words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError, ShapeError

SHAPE = (2, 3, 4, 6)


def _zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape or SHAPE, dtype)


def _frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _arguments(operation: str) -> dict[str, Any]:
    """Arguments that are accepted."""
    weight, value = np.ones(2, np.float32), np.zeros(2)
    free = np.ones((2, 1, 4, 6), np.uint8)
    term = {"n": _zeros(), "weight": weight, "gradient": _zeros(), "value": value}
    sigmas = {"sigma_space": 1.1, "sigma_colour": 3.0}
    moments = {name: _zeros() for name in ("first", "slope", "second", "previous")}
    bounds = {"clip": 1.0, "lower": 0.0, "upper": 1.0, "floor": 0.1}
    return {
        "total_variation": term,
        "log_penalty": {**term, "x": _zeros(), "free": free, "epsilon": 1e-4},
        "mixture_prior": {
            **term, "free": free, "means": _zeros(2, 3), "precisions": _zeros(2, 3, 3),
        },
        "sharing_weights": {
            "x": _zeros(), "radius": 1, "weights": _zeros(2, 9, 4, 6, dtype=np.float16), **sigmas,
        },
        "share_gradient": {
            "gradient": _zeros(), "weights": _zeros(2, 9, 4, 6, dtype=np.float16),
            "radius": 1, "shared": _zeros(),
        },
        "share_gradient_direct": {
            "gradient": _zeros(), "x": _zeros(), "radius": 1, "shared": _zeros(), **sigmas,
        },
        "adan": {
            "n": _zeros(), "x": _zeros(), "g": _zeros(), **moments, "free": free, "step": 1,
            "rate": weight, **bounds,
        },
    }[operation]  # fmt: skip


ARRAYS = [
    ("total_variation", {"n": _zeros(3, 4, 6)}, r"n must be \(batch, channels, height, width\)"),
    ("total_variation", {"n": _zeros(2, 3, 0, 6)}, r"every size >= 1, found \(2, 3, 0, 6\)"),
    ("total_variation", {"n": _zeros(dtype=np.float64)}, "n must be float32, found float64"),
    ("total_variation", {"n": None}, "n must be a NumPy array of float32, found NoneType"),
    ("total_variation", {"weight": np.ones(3, np.float32)}, r"weight must have the shape \(2,\)"),
    ("total_variation", {"gradient": _zeros(2, 3, 4, 7)}, r"gradient .*\(2, 3, 4, 6\), found"),
    ("total_variation", {"gradient": _zeros(2, 3, 4, 12)[..., ::2]}, "C-contiguous.*np.empty"),
    ("total_variation", {"gradient": _frozen(_zeros())}, "gradient is written to, but .*read-only"),
    ("total_variation", {"value": np.zeros(2, np.float32)}, "value must be float64, found float32"),
    ("log_penalty", {"x": _zeros(2, 3, 6, 4)}, r"x must have the shape \(2, 3, 4, 6\)"),
    ("log_penalty", {"free": np.ones((2, 1, 4, 6), bool)}, "free must be uint8, found bool"),
    ("log_penalty", {"free": np.ones(SHAPE, np.uint8)}, r"free must have the shape \(2, 1, 4, 6\)"),
    ("mixture_prior", {"means": _zeros(2, 4)}, r"means must be \(components, 3\)"),
    ("mixture_prior", {"means": _zeros(0, 3)}, "at least one component"),
    ("mixture_prior", {"precisions": _zeros(1, 3, 3)}, r"precisions .*\(2, 3, 3\)"),
    ("sharing_weights", {"weights": _zeros(2, 25, 4, 6, dtype=np.float16)}, r"\(2, 9, 4, 6\)"),
    ("sharing_weights", {"weights": _zeros(2, 9, 4, 6)}, "weights must be float16, found float32"),
    ("share_gradient", {"weights": _zeros(2, 9, 6, 4, dtype=np.float16)}, r"\(2, 9, 4, 6\)"),
    ("share_gradient", {"shared": _zeros(2, 1, 4, 6)}, r"shared must have the shape"),
    ("share_gradient_direct", {"x": _zeros(2, 1, 4, 6)}, "x must have the shape"),
    ("adan", {"g": _zeros(2, 3, 4, 5)}, "g must have the shape"),
    ("adan", {"second": _zeros(dtype=np.float64)}, "second must be float32, found float64"),
    ("adan", {"previous": _frozen(_zeros())}, "previous is written to, but .*read-only"),
    ("adan", {"rate": np.ones(1, np.float32)}, r"rate must have the shape \(2,\), found \(1,\)"),
]  # fmt: skip

SETTINGS = [
    ("log_penalty", {"epsilon": 0.0}, "epsilon must be > 0, found 0.0"),
    ("log_penalty", {"epsilon": float("nan")}, "epsilon must be > 0, found nan"),
    ("sharing_weights", {"radius": -1}, "radius must be a whole number >= 0, found -1"),
    ("sharing_weights", {"radius": 1.5}, "radius must be a whole number >= 0, found 1.5"),
    ("sharing_weights", {"sigma_space": 0.0}, "sigma_space must be > 0, found 0.0"),
    ("share_gradient", {"radius": 1 << 40}, "radius must be a whole number"),
    ("share_gradient_direct", {"radius": -1}, "radius must be a whole number >= 0, found -1"),
    ("share_gradient_direct", {"sigma_colour": -2.0}, "sigma_colour must be > 0, found -2"),
    ("adan", {"step": 0}, "step counts from 1, found 0"),
    ("adan", {"lower": 2.0}, r"the box \[2.0, 1.0\] is empty"),
    ("adan", {"clip": 0.0}, "clip must be > 0, found 0.0"),
    ("adan", {"floor": 0.0}, "floor must be > 0, found 0.0"),
    ("adan", {"eps": -1.0}, "eps must be >= 0, found -1.0"),
    ("adan", {"beta2": 1.0}, r"beta2 must lie in \[0, 1\), found 1.0"),
]

SHARED_MEMORY = [
    ("total_variation", "gradient", "n"),
    ("log_penalty", "gradient", "x"),
    ("mixture_prior", "gradient", "n"),
    ("share_gradient", "shared", "gradient"),
    ("share_gradient_direct", "shared", "x"),
    ("adan", "n", "x"),
    ("adan", "first", "second"),
]


@pytest.mark.parametrize(("operation", "changes", "message"), ARRAYS)
def test_arrays_that_do_not_fit_are_refused(
    kernels: Any, operation: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShapeError, match=f"{operation}: .*{message}"):
        getattr(kernels, operation)(**{**_arguments(operation), **changes})


@pytest.mark.parametrize(("operation", "changes", "message"), SETTINGS)
def test_settings_out_of_range_are_refused(
    kernels: Any, operation: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"{operation}: {message}"):
        getattr(kernels, operation)(**{**_arguments(operation), **changes})


@pytest.mark.parametrize(("operation", "output", "other"), SHARED_MEMORY)
def test_outputs_must_have_memory_of_their_own(
    kernels: Any, operation: str, output: str, other: str
) -> None:
    arguments = _arguments(operation)
    arguments[output] = arguments[other]
    with pytest.raises(ShapeError, match=rf"{operation}: {output} is written to and shares memory"):
        getattr(kernels, operation)(**arguments)


@pytest.mark.parametrize(
    "operation",
    [
        "total_variation",
        "log_penalty",
        "mixture_prior",
        "sharing_weights",
        "share_gradient",
        "share_gradient_direct",
        "adan",
    ],
)
def test_inputs_may_be_read_only(kernels: Any, operation: str) -> None:
    arguments = _arguments(operation)
    outputs = {"gradient", "value", "weights", "shared", "n", "first", "slope", "second"}
    outputs |= {"previous"}
    if operation in ("total_variation", "log_penalty", "mixture_prior"):
        outputs -= {"n", "weights"}
    if operation.startswith("share_"):
        outputs -= {"gradient", "weights"}
    for name, array in arguments.items():
        if isinstance(array, np.ndarray) and name not in outputs:
            array.flags.writeable = False
    getattr(kernels, operation)(**arguments)
