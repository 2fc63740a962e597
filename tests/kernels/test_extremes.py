"""Values at the ends of float32, NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

LENGTH = 19


def _image(*values: float) -> Any:
    image = np.zeros((1, 1, 1, LENGTH), np.float32)
    image[0, 0, 0, : len(values)] = values
    return image


def _closed_form(kernels: Any, g: Any, lam: float, x: Any = None) -> tuple[Any, Any, float]:
    mask, cotangent, objective = np.full_like(g, 7), np.full_like(g, 7), np.zeros(len(g))
    per_item = np.full(len(g), lam, np.float32)
    x = np.zeros_like(g) if x is None else x
    ones = np.ones(len(g), np.float32)
    kernels.rgi_closed_form(
        x, g, per_item, ones, mask=mask, cotangent=cotangent, objective=objective
    )
    return mask, cotangent, objective


@pytest.mark.parametrize("lam", [1e-40, 1e-30, 0.1, 1e30])
def test_closed_form_takes_every_finite_residual(kernels: Any, lam: float) -> None:
    g = _image(0.0, 1e-30, -1e-20, 1e-3, 1.0, 1e19, -1e30, 3e38)
    mask, cotangent, objective = _closed_form(kernels, g, lam)
    assert np.isfinite(mask).all()
    assert np.isfinite(cotangent).all()
    assert np.isfinite(objective).all()
    assert mask.min() == 0.0
    assert mask.max() <= 1.0
    assert mask[0, 0, 0, 0] == 0.0  # r2 = 0
    r = g.astype(np.float64)
    exact_lam = np.float64(np.float32(lam))
    with np.errstate(over="ignore", divide="ignore"):
        loss = np.where(2 * r * r <= exact_lam, r * r, exact_lam - exact_lam**2 / (4 * r * r))
    # float32 squares: below 1e-38 they lose digits, hence the absolute part.
    np.testing.assert_allclose(objective, loss.sum(), rtol=1e-6, atol=1e-44)


def test_closed_form_with_lam_zero_masks_every_difference(kernels: Any) -> None:
    mask, cotangent, objective = _closed_form(kernels, _image(0.0, 1.0, -2.0), 0.0)
    assert mask[0, 0, 0, :3].tolist() == [0.0, 1.0, 1.0]
    assert not cotangent.any()
    assert objective.item() == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, LENGTH - 1])
def test_closed_form_objective_is_nan_where_an_element_is_not_finite(
    kernels: Any, bad: float, where: int
) -> None:
    g = np.zeros((3, 2, 1, LENGTH), np.float32)
    g[1, 1, 0, where] = bad
    shared_mask = np.empty((3, 1, 1, LENGTH), np.float32)
    cotangent, objective = np.empty_like(g), np.zeros(3)
    ones = np.ones(3, np.float32)
    kernels.rgi_closed_form(
        np.zeros_like(g), g, ones, ones, mask=shared_mask, cotangent=cotangent, objective=objective
    )
    assert np.isnan(objective).tolist() == [False, True, False]
    assert np.isnan(cotangent[1, 1, 0, where])
    assert np.isfinite(cotangent).sum() >= cotangent.size - 2  # its pixel only
    assert np.isfinite(cotangent[[0, 2]]).all()


@pytest.mark.parametrize("operation", ["residual_l2", "residual_l1"])
def test_residual_objective_does_not_overflow(kernels: Any, operation: str) -> None:
    g = _image(1e30, -1e30, 1e-30)
    cotangent, objective = np.empty_like(g), np.zeros(1)
    getattr(kernels, operation)(
        np.zeros_like(g), g, np.ones(1, np.float32), cotangent=cotangent, objective=objective
    )
    expected = 2e60 if operation == "residual_l2" else 2e30
    assert objective.item() == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(cotangent).all()


@pytest.mark.parametrize("operation", ["residual_l2", "residual_l1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_residual_passes_nan_to_element_and_item(
    kernels: Any, operation: str, weighted: bool
) -> None:
    g = np.zeros((2, 1, 1, LENGTH), np.float32)
    g[1, 0, 0, 3] = np.nan
    cotangent, objective = np.empty_like(g), np.zeros(2)
    getattr(kernels, operation)(
        np.zeros_like(g),
        g,
        np.ones(2, np.float32),
        cotangent=cotangent,
        objective=objective,
        weight=np.ones_like(g) if weighted else None,
    )
    assert np.isnan(objective).tolist() == [False, True]
    assert np.flatnonzero(np.isnan(cotangent)).tolist() == [LENGTH + 3]


def test_residual_l1_has_no_slope_where_equal(kernels: Any) -> None:
    g = _image(0.0, 2.0, -2.0)
    cotangent, objective = np.empty_like(g), np.zeros(1)
    kernels.residual_l1(
        np.zeros_like(g), g, np.array([3], np.float32), cotangent=cotangent, objective=objective
    )
    assert cotangent[0, 0, 0, :3].tolist() == [0.0, 3.0, -3.0]


def test_rgi_gradient_passes_nan_and_does_not_overflow(kernels: Any) -> None:
    g = np.zeros((3, 1, 1, LENGTH), np.float32)
    g[0, 0, 0, 0], g[1, 0, 0, 0] = 1e30, np.nan
    mask, mask_gradient, cotangent = np.zeros_like(g), np.empty_like(g), np.empty_like(g)
    mask[2, 0, 0, 5] = np.nan
    objective, ones = np.zeros(3), np.ones(3, np.float32)
    kernels.rgi_gradient(
        np.zeros_like(g),
        g,
        mask,
        ones,
        ones,
        cotangent=cotangent,
        mask_gradient=mask_gradient,
        objective=objective,
    )
    assert objective[0] == pytest.approx(1e60, rel=1e-6)
    assert np.isnan(objective[1:]).all()
    assert mask_gradient[0, 0, 0, 0] == -np.inf  # -2e60 is no float32
    assert np.isnan(mask_gradient[1, 0, 0, 0])
    assert np.isnan(mask_gradient[2, 0, 0, 5])


def test_adam_keeps_nan_visible_in_the_box(kernels: Any) -> None:
    p = np.zeros(LENGTH, np.float32)
    grad = np.ones_like(p)
    grad[4] = np.nan
    kernels.adam(p, grad, np.zeros_like(p), np.zeros_like(p), step=1, lr=0.1, lower=-1.0, upper=1.0)
    assert np.flatnonzero(np.isnan(p)).tolist() == [4]


def test_norms_of_extremes(kernels: Any) -> None:
    x = np.zeros((4, LENGTH), np.float32)
    x[0, 0], x[1, 3], x[2, 5], x[3, 6] = 1e30, np.nan, np.inf, 1e-30
    x[1, 4] = np.inf
    squared, largest = np.zeros(4), np.zeros(4)
    kernels.norms(x, squared=squared, largest=largest)
    np.testing.assert_allclose(squared, [1e60, np.nan, np.inf, 1e-60], rtol=1e-6)
    np.testing.assert_allclose(largest, [1e30, np.nan, np.inf, 1e-30], rtol=1e-6)


def test_project_ball_of_extremes(kernels: Any) -> None:
    p = np.zeros((3, LENGTH), np.float32)
    p[0, 0], p[1, 0], p[2, 0] = 1e30, np.nan, 1e-30
    kernels.project_ball(p, centre=None, radius=np.ones(3, np.float32))
    assert p[0, 0] == 1.0
    assert np.isnan(p[1]).all()
    assert p[2, 0] == np.float32(1e-30)
