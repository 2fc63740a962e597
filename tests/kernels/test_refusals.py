"""Wrong shapes, dtypes, memory orders and shared memory: refused by every implementation alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError, ShapeError

SHAPE = (2, 3, 4, 6)


def _zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape or SHAPE, dtype)


def _closed_form(**changes: Any) -> dict[str, Any]:
    arguments = {
        "x": _zeros(),
        "g": _zeros(),
        "lam": np.ones(2, np.float32),
        "scale": np.ones(2, np.float32),
        "mask": _zeros(2, 1, 4, 6),
        "cotangent": _zeros(),
        "objective": _zeros(2, dtype=np.float64),
    }
    return {**arguments, **changes}


def _frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": _zeros(3, 4, 6)}, r"x must be \(batch, channels, height, width\).*\(3, 4, 6\)"),
        ({"x": _zeros(0, 3, 4, 6)}, r"every size >= 1, found \(0, 3, 4, 6\)"),
        ({"x": _zeros(dtype=np.float64)}, "x must be float32, found float64"),
        ({"x": [[1.0]]}, "x must be a NumPy array of float32, found list"),
        ({"x": None}, "found NoneType"),
        ({"x": _zeros(2, 3, 4, 12)[..., ::2]}, r"C-contiguous.*ascontiguousarray\(x\)"),
        ({"g": _zeros(2, 3, 6, 4).swapaxes(2, 3)}, r"g must be C-contiguous, found strides"),
        ({"g": _zeros(2, 3, 4, 7)}, r"g must have the shape \(2, 3, 4, 6\), found \(2, 3, 4, 7\)"),
        ({"lam": np.ones(3, np.float32)}, r"lam must have the shape \(2,\), found \(3,\)"),
        ({"lam": np.ones(2)}, "lam must be float32, found float64"),
        ({"scale": np.ones((2, 1), np.float32)}, r"scale must have the shape \(2,\)"),
        ({"mask": _zeros(2, 2, 4, 6)}, r"\(2, 1, 4, 6\) .* or \(2, 3, 4, 6\) .*\(2, 2, 4, 6\)"),
        ({"mask": _frozen(_zeros(2, 1, 4, 6))}, "mask is written to, but .* read-only"),
        ({"cotangent": _zeros(2, 3, 4, 12)[..., ::2]}, "C-contiguous.*np.empty"),
        ({"objective": np.zeros(2, np.float32)}, "objective must be float64, found float32"),
        ({"objective": np.zeros(1)}, r"objective must have the shape \(2,\), found \(1,\)"),
    ],
)
def test_closed_form_refuses_and_says_why(
    kernels: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        kernels.rgi_closed_form(**_closed_form(**changes))


def test_closed_form_refuses_an_output_that_is_an_input(kernels: Any) -> None:
    g = _zeros()
    with pytest.raises(ShapeError, match="cotangent is written to and shares memory with g"):
        kernels.rgi_closed_form(**_closed_form(g=g, cotangent=g))


def test_closed_form_refuses_outputs_that_overlap(kernels: Any) -> None:
    room = np.zeros(200, np.float32)
    mask, cotangent = room[:48].reshape(2, 1, 4, 6), room[40:184].reshape(SHAPE)
    with pytest.raises(ShapeError, match="mask is written to and shares memory with cotangent"):
        kernels.rgi_closed_form(**_closed_form(mask=mask, cotangent=cotangent))


def test_inputs_may_share_memory_and_be_read_only(kernels: Any) -> None:
    x = _frozen(_zeros())
    ones = _frozen(np.ones(2, np.float32))
    arguments = _closed_form(x=x, g=x, lam=ones, scale=ones)
    kernels.rgi_closed_form(**arguments)
    assert arguments["objective"].tolist() == [0.0, 0.0]


def test_rgi_gradient_refuses_a_mask_gradient_of_another_shape(kernels: Any) -> None:
    arguments = _closed_form(mask_gradient=_zeros())
    with pytest.raises(ShapeError, match=r"mask_gradient must have the shape \(2, 1, 4, 6\)"):
        kernels.rgi_gradient(**arguments)


@pytest.mark.parametrize("operation", ["residual_l2", "residual_l1"])
def test_residual_refuses_a_weight_that_does_not_fit(kernels: Any, operation: str) -> None:
    arguments = _closed_form(weight=_zeros(1, 1, 4, 6))
    for name in ("lam", "mask"):
        del arguments[name]
    with pytest.raises(ShapeError, match=f"{operation}: weight must have the shape"):
        getattr(kernels, operation)(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grad": _zeros(5)}, ShapeError, r"grad must have the shape \(4,\), found \(5,\)"),
        ({"m": _zeros(4, dtype=np.float64)}, ShapeError, "m must be float32, found float64"),
        ({"p": _zeros(8)[::2]}, ShapeError, "p must be C-contiguous"),
        ({"step": 0}, ConfigError, "step counts from 1, found 0"),
        ({"lower": 1.0, "upper": 0.0}, ConfigError, r"the box \[1.0, 0.0\] is empty"),
    ],
)
def test_adam_refuses_and_says_why(
    kernels: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {name: _zeros(4) for name in ("p", "grad", "m", "v")}
    with pytest.raises(error, match=message):
        kernels.adam(**{**arguments, "step": 1, "lr": 0.1, **changes})


def test_adam_refuses_moments_in_one_array(kernels: Any) -> None:
    moments = _zeros(4)
    with pytest.raises(ShapeError, match="m is written to and shares memory with v"):
        kernels.adam(_zeros(4), _zeros(4), moments, moments, step=1, lr=0.1)


@pytest.mark.parametrize(
    ("p", "radius", "error", "message"),
    [
        (_zeros(4), np.ones(4, np.float32), ShapeError, r"p must be \(batch, n\)"),
        (_zeros(2, 3), np.ones(3, np.float32), ShapeError, r"radius must have the shape \(2,\)"),
        (_zeros(2, 3), -np.ones(2, np.float32), ConfigError, "radius must be >= 0, found -1"),
        (_zeros(1, 3), np.full(1, np.nan, np.float32), ConfigError, "radius must be >= 0"),
    ],
)
def test_project_ball_refuses_and_says_why(
    kernels: Any, p: Any, radius: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kernels.project_ball(p, centre=None, radius=radius)


def test_reductions_refuse_and_say_why(kernels: Any) -> None:
    with pytest.raises(ShapeError, match=r"squared must have the shape \(2,\), found \(3,\)"):
        kernels.norms(_zeros(2, 5), squared=np.zeros(3), largest=np.zeros(2))
    with pytest.raises(ShapeError, match="x must be float32, found int64"):
        kernels.all_finite(np.arange(3))
