"""Values known on paper: the mask, the profile loss, the envelope theorem, Adam in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference import adam as adam64
from unblemish.kernels.reference import rgi_closed_form as closed_form64
from unblemish.kernels.reference import rgi_gradient as gradient64

CENTRAL = 1e-6  # step of central differences in float64: truncation 1e-12, rounding 1e-10


def _one(value: float) -> Any:
    return np.full((1, 1, 1, 1), value, np.float32)


@pytest.mark.parametrize(
    ("residual", "lam", "mask", "loss"),
    [
        (0.0, 0.5, 0.0, 0.0),
        (0.5, 0.5, 0.0, 0.25),  # 2 r2 = lam: the kink
        (1.0, 0.5, 0.75, 0.5 - 0.0625),  # 1 - 0.5 / 2, lam - lam^2 / 4
        (-2.0, 4.0, 0.5, 3.0),  # 1 - 4 / 8, 4 - 16 / 16
    ],
)
def test_closed_form_of_one_pixel(
    kernels: Any, residual: float, lam: float, mask: float, loss: float
) -> None:
    found, cotangent, objective = _one(7), _one(7), np.zeros(1)
    kernels.rgi_closed_form(
        _one(0),
        _one(residual),
        np.array([lam], np.float32),
        np.array([2], np.float32),
        mask=found,
        cotangent=cotangent,
        objective=objective,
    )
    # Every number here is exact in float32.
    assert found.item() == mask
    assert objective.item() == 2 * loss
    assert cotangent.item() == 2 * 2 * (1 - mask) ** 2 * residual


def test_shared_mask_sums_over_channels(kernels: Any) -> None:
    g = np.array([3.0, 4.0], np.float32).reshape(1, 2, 1, 1)
    mask, cotangent, objective = _one(7), np.empty_like(g), np.zeros(1)
    ones = np.ones(1, np.float32)
    kernels.rgi_closed_form(
        np.zeros_like(g), g, ones, ones, mask=mask, cotangent=cotangent, objective=objective
    )
    assert mask.item() == pytest.approx(1 - 1 / 50, rel=1e-7)
    assert objective.item() == pytest.approx(1 - 1 / 100, rel=1e-7)


@pytest.mark.parametrize("shared", [True, False])
def test_closed_mask_is_the_minimum_over_masks(rng: np.random.Generator, shared: bool) -> None:
    x, g = rng.normal(size=(2, 2, 3, 4, 5))
    lam, scale = np.array([0.3, 2.0]), np.array([1.0, 0.5])
    mask, _, profile = closed_form64(x, g, lam, scale, shared=shared)
    assert gradient64(x, g, mask, lam, scale)[2] == pytest.approx(profile, rel=1e-12)
    for _ in range(20):
        other = mask + rng.normal(size=mask.shape) * rng.choice([1e-3, 0.1, 1.0])
        assert np.all(gradient64(x, g, other, lam, scale)[2] >= profile)


@pytest.mark.parametrize("shared", [True, False])
def test_cotangent_is_the_derivative_of_the_profile_loss(
    rng: np.random.Generator, shared: bool
) -> None:
    x, g = rng.normal(size=(2, 1, 2, 3, 3))
    lam, scale = np.array([0.7]), np.array([1.3])
    cotangent = closed_form64(x, g, lam, scale, shared=shared)[1]
    for index in np.ndindex(g.shape):
        values = []
        for sign in (1, -1):
            moved = g.copy()
            moved[index] += sign * CENTRAL
            values.append(closed_form64(x, moved, lam, scale, shared=shared)[2].item())
        slope = (values[0] - values[1]) / (2 * CENTRAL)
        assert slope == pytest.approx(cotangent[index], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("shared", [True, False])
def test_rgi_gradient_is_the_derivative_of_its_objective(
    rng: np.random.Generator, shared: bool
) -> None:
    x, g = rng.normal(size=(2, 1, 2, 2, 3))
    mask = rng.normal(size=(1, 1 if shared else 2, 2, 3))
    lam, scale = np.array([0.7]), np.array([1.3])
    cotangent, mask_gradient, _ = gradient64(x, g, mask, lam, scale)
    for array, slope in ((g, cotangent), (mask, mask_gradient)):
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + CENTRAL
            above = gradient64(x, g, mask, lam, scale)[2].item()
            array[index] = kept - CENTRAL
            below = gradient64(x, g, mask, lam, scale)[2].item()
            array[index] = kept
            assert (above - below) / (2 * CENTRAL) == pytest.approx(
                slope[index], rel=1e-6, abs=1e-8
            )


def test_mask_gradient_vanishes_at_the_closed_form_mask(rng: np.random.Generator) -> None:
    x, g = rng.normal(size=(2, 1, 3, 8, 8))
    lam = np.array([0.5])
    mask = closed_form64(x, g, lam, np.ones(1), shared=True)[0]
    gradient = gradient64(x, g, mask, lam, np.ones(1))[1]
    assert np.abs(gradient[mask > 0]).max() < 1e-12
    # At mask = 0 the subgradient interval [-lam, lam] - 2 r2 must contain 0.
    r2 = ((g - x) ** 2).sum(1, keepdims=True)
    assert np.all(2 * r2[mask == 0] <= lam)


def test_adam_matches_torch_over_50_steps(kernels: Any, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    p = rng.normal(size=(3, 99)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(p.copy()))
    optimiser = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step in range(1, 51):
        grad = rng.normal(size=p.shape).astype(np.float32)
        theirs.grad = torch.from_numpy(grad.copy())
        optimiser.step()
        kernels.adam(p, grad, m, v, step=step, lr=0.1)
    # 50 updates of at most 0.1, each with a handful of float32 roundings on numbers near 1.
    np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=0, atol=5e-6)


def test_adam_projects_on_the_box(kernels: Any) -> None:
    p = np.array([0.0, 0.05, 0.5, 0.95, 1.0], np.float32)
    grad = np.array([1, 1, -1, -1, -1], np.float32)
    kernels.adam(p, grad, np.zeros_like(p), np.zeros_like(p), step=1, lr=0.1, lower=0.0, upper=1.0)
    np.testing.assert_allclose(p, [0, 0, 0.6, 1, 1], atol=1e-6)


def test_adam_first_step_moves_by_the_learning_rate(rng: np.random.Generator) -> None:
    grad = rng.normal(size=20)
    moved = adam64(
        np.zeros(20),
        grad,
        np.zeros(20),
        np.zeros(20),
        step=1,
        lr=0.1,
        beta1=0.9,
        beta2=0.999,
        eps=0.0,
        lower=-1.0,
        upper=1.0,
    )[0]
    np.testing.assert_allclose(moved, -0.1 * np.sign(grad), rtol=1e-12)


def test_project_ball_is_the_nearest_point(kernels: Any, rng: np.random.Generator) -> None:
    p = rng.normal(size=(1, 30)).astype(np.float32) * 3
    projected = p.copy()
    kernels.project_ball(projected, centre=None, radius=np.array([1.5], np.float32))
    # The norm is that of 30 rounded float32 numbers.
    assert np.linalg.norm(projected.astype(float)) == pytest.approx(1.5, rel=1e-6)
    for _ in range(50):
        other = rng.normal(size=30)
        other *= 1.5 / np.linalg.norm(other)
        assert np.linalg.norm(other - p) >= np.linalg.norm(projected - p) - 1e-6
