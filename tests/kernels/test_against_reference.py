"""Every implementation against the float64 reference, on awkward sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

# float32 arithmetic: at most half a dozen roundings (2^-24 each) per element, on values near 1; the
# cotangent adds the cancellation in g - x, which the reference takes from the same float32 inputs.
ELEMENT = {"rtol": 2e-6, "atol": 2e-6}
# Sums are taken in float64, of terms rounded to float32 a few times: relative error as of one term.
SUM = {"rtol": 1e-6, "atol": 1e-12}


def _outputs(case: Any) -> tuple[Any, Any, Any]:
    batch = case.x.shape[0]
    return np.full_like(case.mask, 7), np.full_like(case.x, 7), np.full(batch, 7.0)


def test_rgi_closed_form_matches_reference(kernels: Any, reference: Any, case: Any) -> None:
    found, expected = _outputs(case), _outputs(case)
    for implementation, (mask, cotangent, objective) in ((kernels, found), (reference, expected)):
        implementation.rgi_closed_form(
            case.x,
            case.g,
            case.lam,
            case.scale,
            mask=mask,
            cotangent=cotangent,
            objective=objective,
        )
    np.testing.assert_allclose(found[0], expected[0], **ELEMENT)
    np.testing.assert_allclose(found[1], expected[1], **ELEMENT)
    np.testing.assert_allclose(found[2], expected[2], **SUM)


def test_rgi_gradient_matches_reference(kernels: Any, reference: Any, case: Any) -> None:
    found, expected = _outputs(case), _outputs(case)
    for implementation, (mask_gradient, cotangent, objective) in (
        (kernels, found),
        (reference, expected),
    ):
        implementation.rgi_gradient(
            case.x,
            case.g,
            case.mask,
            case.lam,
            case.scale,
            cotangent=cotangent,
            mask_gradient=mask_gradient,
            objective=objective,
        )
    # r2 reaches about 100 here, and the gradient cancels: errors are relative to that.
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6, atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], **ELEMENT)
    np.testing.assert_allclose(found[2], expected[2], **SUM)


@pytest.mark.parametrize("operation", ["residual_l2", "residual_l1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_residual_matches_reference(
    kernels: Any, reference: Any, case: Any, operation: str, weighted: bool
) -> None:
    found, expected = _outputs(case)[1:], _outputs(case)[1:]
    for implementation, (cotangent, objective) in ((kernels, found), (reference, expected)):
        getattr(implementation, operation)(
            case.x,
            case.g,
            case.scale,
            cotangent=cotangent,
            objective=objective,
            weight=case.weight if weighted else None,
        )
    np.testing.assert_allclose(found[0], expected[0], **ELEMENT)
    np.testing.assert_allclose(found[1], expected[1], **SUM)


@pytest.mark.parametrize("box", [(-np.inf, np.inf), (-0.5, np.inf), (0.0, 1.0)])
def test_adam_matches_reference(
    kernels: Any, reference: Any, shape: Any, rng: np.random.Generator, box: tuple[float, float]
) -> None:
    start = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
    start[2] = np.abs(start[2])
    grad = rng.normal(size=shape).astype(np.float32)
    states = [[a.copy() for a in start] for _ in range(2)]
    for implementation, (p, m, v) in zip((kernels, reference), states, strict=True):
        implementation.adam(p, grad, m, v, step=3, lr=0.1, lower=box[0], upper=box[1])
    # m / sqrt(v) reaches 30 where v is small, and so do its roundings.
    for found, expected in zip(*states, strict=True):
        np.testing.assert_allclose(found, expected, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("length", [1, 19, 99, 989, 8193])
def test_project_ball_matches_reference(
    kernels: Any, reference: Any, rng: np.random.Generator, length: int, centred: bool
) -> None:
    p = rng.normal(size=(5, length)).astype(np.float32)
    centre = rng.normal(size=p.shape).astype(np.float32) if centred else None
    distance = np.linalg.norm(p - (0 if centre is None else centre), axis=1)
    radius = (distance * np.array([0.0, 0.3, 0.9, 1.1, 5.0])).astype(np.float32)
    found, expected = p.copy(), p.copy()
    kernels.project_ball(found, centre=centre, radius=radius)
    reference.project_ball(expected, centre=centre, radius=radius)
    np.testing.assert_allclose(found, expected, **ELEMENT)
    np.testing.assert_array_equal(found[3:], p[3:])  # inside the ball nothing moves


def test_norms_match_reference(
    kernels: Any, reference: Any, shape: Any, rng: np.random.Generator
) -> None:
    x = rng.normal(size=shape).astype(np.float32)
    found, expected = np.full((2, shape[0]), 7.0), np.full((2, shape[0]), 7.0)
    kernels.norms(x, squared=found[0], largest=found[1])
    reference.norms(x, squared=expected[0], largest=expected[1])
    # Squares of float32 are exact in float64, and so is the largest: only the sum's order differs.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_sees_one_bad_element_anywhere(
    kernels: Any, shape: Any, rng: np.random.Generator, bad: float
) -> None:
    x = rng.normal(size=shape).astype(np.float32)
    assert kernels.all_finite(x)
    for where in {0, x.size // 2, x.size - 1}:
        x.flat[where], kept = bad, x.flat[where]
        assert not kernels.all_finite(x)
        x.flat[where] = kept
    assert kernels.all_finite(np.zeros(0, np.float32))
