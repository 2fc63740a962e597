"""The likelihood of learned variances: by torch's autograd, against float64, and at its ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

# r^2 exp(-2 s) reaches 1e5 here: errors are relative, and to its largest part where it cancels.
ELEMENT = {"rtol": 4e-6, "atol": 4e-6}
SUM = {"rtol": 4e-6, "atol": 1e-9}


def _inputs(shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> tuple[Any, ...]:
    rng = np.random.default_rng(3)
    x, r = rng.random(shape, dtype=np.float32), rng.normal(size=shape)
    log_scale = rng.uniform(-4, 2, size=scale_shape).astype(np.float32)
    return x, (x + r).astype(np.float32), log_scale, np.linspace(0.5, 2, shape[0], dtype=np.float32)


def _run(kernels: Any, x: Any, g: Any, log_scale: Any, scale: Any) -> dict[str, Any]:
    out = {
        "cotangent": np.full_like(x, 7),
        "log_scale_cotangent": np.full_like(log_scale, 7),
        "objective": np.full(len(x), 7.0),
    }
    kernels.gaussian_nll(x, g, log_scale, scale, **out)
    return out


def test_gaussian_nll_matches_reference(
    kernels: Any, reference: Any, shape: Any, mask_shape: Any
) -> None:
    given = _inputs(shape, mask_shape)
    found, expected = _run(kernels, *given), _run(reference, *given)
    np.testing.assert_allclose(found["cotangent"], expected["cotangent"], **ELEMENT)
    # 1 - r^2 exp(-2 s), summed over the channels, may cancel.
    slope, largest = expected["log_scale_cotangent"], abs(expected["cotangent"]).max()
    np.testing.assert_allclose(
        found["log_scale_cotangent"], slope, rtol=4e-6, atol=4e-6 * max(1, largest)
    )
    np.testing.assert_allclose(found["objective"], expected["objective"], **SUM)


def test_gaussian_nll_is_that_of_torch(
    kernels: Any, reference: Any, shape: Any, mask_shape: Any
) -> None:
    torch = pytest.importorskip("torch")
    given = _inputs(shape, mask_shape)
    x, g, s, scale = (torch.tensor(v, dtype=torch.float64) for v in given)
    leaves = [g.requires_grad_(), s.requires_grad_()]
    normal = torch.distributions.Normal(g, s.exp().expand(g.shape))
    constant = 0.5 * np.log(2 * np.pi)
    each = (-normal.log_prob(x) - constant).sum((1, 2, 3))
    slopes = torch.autograd.grad((scale * each).sum(), leaves)
    for implementation, relative in ((kernels, 4e-6), (reference, 2e-7)):
        found = _run(implementation, *given)
        total = (scale * each).detach().numpy()
        np.testing.assert_allclose(found["objective"], total, rtol=relative, atol=1e-8)
        for name, slope in zip(("cotangent", "log_scale_cotangent"), slopes, strict=True):
            largest = max(1.0, float(slope.abs().max()))
            np.testing.assert_allclose(found[name], slope.numpy(), rtol=0, atol=relative * largest)


def test_one_variance_is_the_weighted_squared_error(kernels: Any) -> None:
    """1 / (2 gamma^2) as the scale of residual_l2; the logarithm of gamma is a constant."""
    x, g, _, _ = _inputs((2, 3, 9, 11), (2, 1, 9, 11))
    gamma = np.array([0.1, 2.0], np.float32)
    log_scale = np.broadcast_to(np.log(gamma).reshape(2, 1, 1, 1), (2, 1, 9, 11)).copy()
    found = _run(kernels, x, g, log_scale, np.ones(2, np.float32))
    cotangent, objective = np.empty_like(x), np.empty(2)
    kernels.residual_l2(x, g, 1 / (2 * gamma**2), cotangent=cotangent, objective=objective)
    np.testing.assert_allclose(found["cotangent"], cotangent, rtol=2e-6)
    expected = objective + 3 * 9 * 11 * np.log(gamma)
    np.testing.assert_allclose(found["objective"], expected, rtol=2e-6)


@pytest.mark.parametrize("s", [-40.0, -20.0, 0.0, 20.0, 40.0])
def test_gaussian_nll_holds_over_all_variances(kernels: Any, reference: Any, s: float) -> None:
    x, g, log_scale, scale = _inputs((1, 1, 5, 19), (1, 1, 5, 19))
    log_scale[...] = s
    found, expected = (_run(k, x, g, log_scale, scale) for k in (kernels, reference))
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=5e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_gaussian_nll_shows_a_bad_number(kernels: Any, bad: float, place: int) -> None:
    given = _inputs((2, 3, 5, 19), (2, 1, 5, 19))
    given[place][1, 2, 3, 4] = bad
    found = _run(kernels, *given)
    assert np.isfinite(found["objective"]).tolist() == [True, False]
    assert np.argwhere(~np.isfinite(found["cotangent"])).tolist() == [[1, 2, 3, 4]]
    assert np.argwhere(~np.isfinite(found["log_scale_cotangent"])).tolist() == [[1, 0, 3, 4]]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    pytest.importorskip("unblemish.kernels._cpu", reason="installed without a C++ compiler")
    from unblemish.kernels.cpu import CpuKernels

    given = _inputs((2, 3, 301, 303), (2, 1, 301, 303))
    expected = _run(CpuKernels(1), *given)
    for threads in (2, 5):
        for name, array in _run(CpuKernels(threads), *given).items():
            np.testing.assert_array_equal(array, expected[name])
