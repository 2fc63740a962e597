"""The terms of energy projection refuse what does not fit, all in the same words."""

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
    item = np.ones(2, np.float32)
    return {
        "dssim": {
            "x": _zeros(), "g": _zeros(), "scale": item, "data_range": 1.0,
            "dissimilarity": _zeros(2, 1, 4, 6), "direct": _zeros(), "cotangent": _zeros(),
            "objective": np.zeros(2), "window": 11, "sigma": 1.5,
        },
        "gaussian_nll": {
            "x": _zeros(), "g": _zeros(), "log_scale": _zeros(2, 1, 4, 6), "scale": item,
            "cotangent": _zeros(), "log_scale_cotangent": _zeros(2, 1, 4, 6),
            "objective": np.zeros(2),
        },
        "energy_step": {
            "x": _zeros(), "start": _zeros(), "pulled": _zeros(), "lam": item, "rate": item.copy(),
            "direct": _zeros(), "mask": _zeros(2, 1, 4, 6), "restored": _zeros(),
            "first": _zeros(), "second": _zeros(), "l1": np.zeros(2),
            "squared_change": np.zeros(2), "largest_change": np.zeros(2), "lower": 0.0,
            "upper": 1.0,
        },
    }[operation]  # fmt: skip


ARRAYS = [
    ("dssim", {"x": _zeros(3, 4, 6)}, r"x must be \(batch, channels, height, width\)"),
    ("dssim", {"x": _zeros(2, 3, 0, 6)}, r"every size >= 1, found \(2, 3, 0, 6\)"),
    ("dssim", {"x": _zeros(2, 3, 4, 12)[..., ::2]}, "x must be C-contiguous.*ascontiguousarray"),
    ("dssim", {"x": _zeros(dtype=np.float64)}, "x must be float32, found float64"),
    ("dssim", {"g": _zeros(2, 3, 6, 4)}, r"g must have the shape \(2, 3, 4, 6\)"),
    ("dssim", {"g": None}, "g must be a NumPy array of float32, found NoneType"),
    ("dssim", {"scale": np.ones(3, np.float32)}, r"scale must have the shape \(2,\)"),
    ("dssim", {"dissimilarity": _zeros()}, r"dissimilarity .*\(2, 1, 4, 6\), found \(2, 3, 4, 6\)"),
    ("dssim", {"direct": _zeros(2, 3, 4, 7)}, r"direct .*\(2, 3, 4, 6\), found"),
    ("dssim", {"cotangent": _frozen(_zeros())}, "cotangent is written to, but .*read-only"),
    ("dssim", {"objective": np.zeros(2, np.float32)}, "objective must be float64, found float32"),
    ("gaussian_nll", {"g": _zeros(2, 3, 4, 7)}, r"g must have the shape \(2, 3, 4, 6\)"),
    ("gaussian_nll", {"log_scale": _zeros(2, 2, 4, 6)}, r"log_scale .*\(2, 1, 4, 6\) .*or"),
    ("gaussian_nll", {"log_scale_cotangent": _zeros()}, r"log_scale_cotangent .*\(2, 1, 4, 6\)"),
    ("gaussian_nll", {"cotangent": _zeros(2, 3, 4, 12)[..., ::2]}, "cotangent must be C-contig"),
    ("gaussian_nll", {"objective": None}, "objective must be a NumPy array of float64"),
    ("energy_step", {"x": _frozen(_zeros())}, "x is written to, but .*read-only"),
    ("energy_step", {"x": _zeros(2, 3, 4, 12)[..., ::2]}, "x must be C-contiguous.*np.empty"),
    ("energy_step", {"start": _zeros(3, 4, 6)}, r"start must be \(batch, channels, .*width\)"),
    ("energy_step", {"pulled": _zeros(2, 3, 6, 4)}, r"pulled must have the shape \(2, 3, 4, 6\)"),
    ("energy_step", {"pulled": None}, "pulled must be a NumPy array of float32, found NoneType"),
    ("energy_step", {"direct": _zeros(2, 1, 4, 6)}, "direct must have the shape"),
    ("energy_step", {"restored": _zeros(dtype=np.float64)}, "restored must be float32, found"),
    ("energy_step", {"mask": _zeros(2, 2, 4, 6)}, r"mask must have the shape \(2, 1, 4, 6\) .*or"),
    ("energy_step", {"first": _zeros(2, 3, 4, 5)}, "first must have the shape"),
    ("energy_step", {"lam": np.ones(1, np.float32)}, r"lam must have the shape \(2,\), found"),
    ("energy_step", {"largest_change": np.zeros(3)}, "largest_change must have the shape"),
]  # fmt: skip

SETTINGS = [
    ("dssim", {"window": 10}, "window must be an odd whole number from 1 to 511, found 10"),
    ("dssim", {"window": 513}, "window must be an odd whole number from 1 to 511, found 513"),
    ("dssim", {"window": -3}, "window must be an odd whole number from 1 to 511, found -3"),
    ("dssim", {"window": 11.0}, "window must be an odd whole number from 1 to 511, found 11.0"),
    ("dssim", {"sigma": 0.0}, "sigma must be a finite number > 0, found 0.0"),
    ("dssim", {"sigma": float("inf")}, "sigma must be a finite number > 0, found inf"),
    ("dssim", {"data_range": float("nan")}, "data_range must be a finite number > 0, found nan"),
    ("energy_step", {"first": None}, "Adam needs first and second; give both, or None for both"),
    ("energy_step", {"lam": np.array([1, -1], np.float32)}, "every lam must be >= 0, found -1.0"),
    ("energy_step", {"rate": np.array([np.nan, 1], np.float32)}, "every rate must be >= 0, found"),
    ("energy_step", {"step": 0}, "step counts from 1, found 0"),
    ("energy_step", {"eps": -1.0}, "eps must be >= 0, found -1.0"),
    ("energy_step", {"beta1": 1.0}, r"beta1 must lie in \[0, 1\), found 1.0"),
    ("energy_step", {"beta2": -0.1}, r"beta2 must lie in \[0, 1\), found -0.1"),
    ("energy_step", {"lower": 2.0}, r"the box \[2.0, 1.0\] is empty"),
]

SHARED_MEMORY = [
    ("dssim", "direct", "x"),
    ("dssim", "cotangent", "direct"),
    ("gaussian_nll", "cotangent", "x"),
    ("gaussian_nll", "log_scale_cotangent", "log_scale"),
    ("energy_step", "x", "start"),
    ("energy_step", "first", "second"),
    ("energy_step", "l1", "squared_change"),
    ("energy_step", "x", "restored"),
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
    with pytest.raises(ShapeError, match=rf"{operation}: .* is written to and shares memory"):
        getattr(kernels, operation)(**arguments)


def test_inputs_may_be_read_only(kernels: Any) -> None:
    inputs = {
        "dssim": ("x", "g", "scale"),
        "gaussian_nll": ("x", "g", "log_scale", "scale"),
        "energy_step": ("start", "pulled", "lam", "rate", "direct", "mask", "restored"),
    }
    for operation, names in inputs.items():
        arguments = _arguments(operation)
        for name in names:
            arguments[name].flags.writeable = False
        getattr(kernels, operation)(**arguments)
