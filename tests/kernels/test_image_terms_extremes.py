"""The terms of F2PAD at the ends of float32, and with NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

SHAPE = (2, 3, 7, 9)
BAD = [np.nan, np.inf, -np.inf]
SHARING = {"radius": 2, "sigma_space": 1.1, "sigma_colour": 3.0}


def _image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 4


def _free(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.ones((shape[0], 1, *shape[2:]), np.uint8)


def _around(y: int, x: int, radius: int) -> Any:
    """(7, 9) pixels within `radius` of one."""
    rows, columns = np.ogrid[: SHAPE[2], : SHAPE[3]]
    return (abs(rows - y) <= radius) & (abs(columns - x) <= radius)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("y", "x"), [(0, 0), (3, 4), (6, 8), (2, 8), (3, 0)])
def test_total_variation_shows_a_bad_pixel_at_its_neighbours(
    kernels: Any, bad: float, y: int, x: int
) -> None:
    n, gradient, value = _image(), np.zeros(SHAPE, np.float32), np.zeros(2)
    n[1, 2, y, x] = bad
    kernels.total_variation(n, np.ones(2, np.float32), gradient=gradient, value=value)
    assert np.isfinite(value).tolist() == [True, False]
    assert np.isfinite(gradient[0]).all()
    rows, columns = np.ogrid[:7, :9]
    touched = abs(rows - y) + abs(columns - x) <= 1
    assert np.isfinite(gradient[1][:, ~touched]).all()
    assert np.isnan(gradient[1, 2, y, x])
    if np.isnan(bad):
        assert np.isnan(gradient[1][:, touched]).all()


@pytest.mark.parametrize("bad", BAD)
def test_log_penalty_shows_a_bad_pixel_that_is_free(kernels: Any, bad: float) -> None:
    x, n, free = _image(1), _image(), _free()
    n[0, 1, 2, 3] = n[1, 1, 4, 5] = bad
    free[0, 0, 2, 3] = 0
    gradient, value = np.zeros(SHAPE, np.float32), np.zeros(2)
    out = {"gradient": gradient, "value": value}
    kernels.log_penalty(x, n, np.ones(2, np.float32), free, epsilon=1e-4, **out)
    assert np.isfinite(value).tolist() == [True, False]
    assert not gradient[0, :, 2, 3].any()
    assert np.isnan(gradient[1, 1, 4, 5])
    gradient[1, :, 4, 5] = 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mixture_prior_shows_a_bad_pixel_that_is_free(
    kernels: Any, bad: float, channels: int
) -> None:
    shape = (2, channels, 7, 9)
    n, free = _image(shape=shape), _free(shape)
    n[0, 0, 2, 3] = n[1, 0, 4, 5] = bad
    free[0, 0, 2, 3] = 0
    gradient, value = np.zeros(shape, np.float32), np.zeros(2)
    means = np.array([[0.5] * channels, [2.5] * channels], np.float32)
    precisions = np.stack([np.eye(channels, dtype=np.float32)] * 2)
    out = {"gradient": gradient, "value": value}
    kernels.mixture_prior(n, means, precisions, np.ones(2, np.float32), free, **out)
    assert np.isfinite(value).tolist() == [True, False]
    assert not gradient[0, :, 2, 3].any()
    assert not np.isfinite(gradient[1, 0, 4, 5])
    gradient[1, :, 4, 5] = 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("bad", BAD)
def test_sharing_shows_a_bad_colour_at_itself(kernels: Any, bad: float) -> None:
    x, g, shared = _image(), _image(1), np.empty(SHAPE, np.float32)
    x[1, 0, 3, 4] = bad
    weights = np.empty((2, 25, 7, 9), np.float16)
    kernels.sharing_weights(x, **SHARING, weights=weights)
    kernels.share_gradient_direct(g, x, **SHARING, shared=shared)
    # A neighbour of infinite colour has weight 0; one of NaN makes the sum NaN.
    touched = _around(3, 4, 2) if np.isnan(bad) else _around(3, 4, 0)
    for found in (weights, shared):
        assert np.isfinite(found[0]).all()
        assert np.isfinite(found[1][:, ~touched]).all()
        assert np.isnan(found[1][:, touched]).any(axis=0).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("y", "x"), [(0, 0), (3, 4), (6, 8), (3, 8)])
def test_a_bad_gradient_reaches_its_neighbours_alone(
    kernels: Any, bad: float, y: int, x: int
) -> None:
    image, g = _image(), _image(1)
    g[1, 2, y, x] = bad
    weights = np.empty((2, 25, 7, 9), np.float16)
    kernels.sharing_weights(image, **SHARING, weights=weights)
    for call in ("table", "direct"):
        shared = np.zeros(SHAPE, np.float32)
        if call == "table":
            kernels.share_gradient(g, weights, radius=2, shared=shared)
        else:
            kernels.share_gradient_direct(g, image, **SHARING, shared=shared)
        assert not np.isfinite(shared[1, 2][_around(y, x, 1)]).any()
        shared[1, 2][_around(y, x, 2)] = 0
        assert np.isfinite(shared).all()


def test_sharing_of_colours_too_far_apart_shares_nothing(kernels: Any) -> None:
    x = (np.arange(63, dtype=np.float32).reshape(1, 1, 7, 9)) * 1e18
    g = _image(1, (1, 1, 7, 9))
    weights, shared = np.empty((1, 25, 7, 9), np.float16), np.empty_like(g)
    kernels.sharing_weights(x, **SHARING, weights=weights)
    kernels.share_gradient_direct(g, x, **SHARING, shared=shared)
    assert (weights[:, 12] == 1).all()
    assert weights.sum() == 63
    np.testing.assert_array_equal(shared, g)


def test_half_weights_take_every_value(kernels: Any) -> None:
    """All 65,536 halves through the table; also what float16 cannot hold comes back as itself."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    shared = np.empty((1, 1, 256, 256), np.float32)
    kernels.share_gradient(np.ones_like(shared), bits, radius=0, shared=shared)
    np.testing.assert_array_equal(shared, bits.astype(np.float32))


def test_weights_round_to_the_nearest_half(kernels: Any) -> None:
    """Two pixels d apart: 1 / (1 + e^-d) and its complement, down to where halves end."""
    d = np.linspace(0, 20, 997, dtype=np.float32)
    x = np.zeros((997, 1, 1, 2), np.float32)
    x[:, 0, 0, 1] = np.sqrt(d)
    weights = np.empty((997, 9, 1, 2), np.float16)
    settings = {"radius": 1, "sigma_space": 1e6, "sigma_colour": 1.0}
    kernels.sharing_weights(x, **settings, weights=weights)
    distance = x[:, 0, 0, 1].astype(np.float64) ** 2 + 1e-6
    exact = np.exp(-distance) / (1 + np.exp(-distance))
    # Half a unit in the last place of a half, and what float32 adds to it; NumPy rounds twice.
    ulp = np.spacing(exact.astype(np.float16)).astype(np.float64)
    found = weights[:, 5, 0, 0].astype(np.float64)
    assert (abs(found - exact) <= (1.6 if kernels.name == "numpy" else 0.51) * ulp).all()


@pytest.mark.parametrize("bad", BAD)
def test_adan_keeps_a_bad_gradient_to_its_component(kernels: Any, bad: float) -> None:
    n, x, g = _image(), _image(1), _image(2)
    g[1, 2, 3, 4] = bad
    moments = [np.zeros(SHAPE, np.float32) for _ in range(4)]
    bounds = {"clip": 1.0, "lower": 0.0, "upper": 4.0, "floor": 0.1}
    kernels.adan(n, x, g, *moments, _free(), step=1, rate=np.full(2, 0.1, np.float32), **bounds)
    first, slope, second, previous = moments
    assert not slope.any()  # nothing changes in step 1
    for found in (n, first, second, previous):  # infinity is clipped
        expected = [[1, 2, 3, 4]] if np.isnan(bad) else []
        assert np.argwhere(~np.isfinite(found)).tolist() == expected
    assert np.nanmin(n) >= 0
    assert np.nanmax(n) <= 4


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_terms_hold_over_thirty_decades(kernels: Any, reference: Any, scale: float) -> None:
    n, x = _image() * np.float32(scale), _image(1) * np.float32(scale)
    weight = np.ones(2, np.float32)
    for implementation, out in (found := [(k, _outputs()) for k in (kernels, reference)]):
        implementation.total_variation(n, weight, **out[0])
        implementation.log_penalty(x, n, weight, _free(), epsilon=1e-4, **out[1])
    for ours, wanted in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(ours["value"], wanted["value"], rtol=1e-5)
        largest = abs(wanted["gradient"]).max()
        np.testing.assert_allclose(ours["gradient"], wanted["gradient"], atol=2e-6 * largest)


def _outputs() -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (
        {"gradient": np.zeros(SHAPE, np.float32), "value": np.zeros(2)} for _ in range(2)
    )
    return first, second
