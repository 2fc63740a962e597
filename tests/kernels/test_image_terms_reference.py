"""The terms of F2PAD, every implementation against the float64 reference, on awkward sizes."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference import ReferenceKernels

# 1, 19 and 37 x 53 are no multiple of a vector width. Rows of 1100 are longer than what is handled
# at once; 12,000 pixels are more than a band, so that bands meet.
SHAPES = [
    (1, 1, 1, 1),
    (5, 3, 1, 1),
    (1, 1, 1, 19),
    (5, 4, 1, 19),
    (5, 1, 19, 1),
    (1, 3, 19, 1),
    (5, 1, 37, 53),
    (1, 3, 37, 53),
    (1, 4, 37, 53),
    (1, 1, 3, 1100),
    (1, 3, 300, 40),
]
SHARING = {"sigma_space": 1.1, "sigma_colour": 3.0}
# A dozen float32 roundings (2^-24 each) on slopes that reach 100 where 1 / sqrt(epsilon) amplifies.
ELEMENT = {"rtol": 2e-6, "atol": 5e-5}
# Terms rounded to float32 and summed in float64.
SUM = {"rtol": 2e-6, "atol": 1e-6}
# The distance to a component cancels: errors are relative to its largest part, which is near 100.
PRIOR = {"rtol": 2e-6, "atol": 5e-4}
# Half precision has 11 bits; weights are at most 1. NumPy's fallback rounds twice.
TABLE = {"rtol": 0, "atol": 5e-4}
# Up to 121 products below 2, weights to 1e-6 and those below 2^-25 left out.
SHARED = {"rtol": 0, "atol": 4e-6}


@cache
def _inputs(shape: tuple[int, int, int, int]) -> Any:
    rng = np.random.default_rng(3)
    batch, channels = shape[:2]
    root = rng.normal(size=(3, channels, channels))
    found = SimpleNamespace(
        n=rng.random(shape, dtype=np.float32) * 4,
        x=rng.random(shape, dtype=np.float32) * 4,
        g=rng.normal(size=shape).astype(np.float32),
        free=(rng.random((batch, 1, *shape[2:])) < 0.7).astype(np.uint8),
        weight=np.linspace(0.5, 2, batch, dtype=np.float32),
        means=rng.random((3, channels), dtype=np.float32) * 4,
        precisions=(root @ root.transpose(0, 2, 1) + np.eye(channels)).astype(np.float32),
    )
    found.x[..., ::3] = found.n[..., ::3]  # no difference: no slope
    for array in vars(found).values():
        array.flags.writeable = False
    return found


def _added(kernels: Any, shape: Any, term: str) -> tuple[Any, Any]:
    i = _inputs(shape)
    out = {"gradient": np.ones(shape, np.float32), "value": np.full(shape[0], 3.0)}
    if term == "total_variation":
        kernels.total_variation(i.n, i.weight, **out)
    elif term == "log_penalty":
        kernels.log_penalty(i.x, i.n, i.weight, i.free, epsilon=1e-4, **out)
    else:
        kernels.mixture_prior(i.n, i.means, i.precisions, i.weight, i.free, **out)
    return out["gradient"], out["value"]


@cache
def _expected(shape: Any, term: str) -> tuple[Any, Any]:
    return _added(ReferenceKernels(), shape, term)


def _weights(kernels: Any, shape: Any, radius: int) -> Any:
    table = np.full((shape[0], (2 * radius + 1) ** 2, *shape[2:]), 7, np.float16)
    kernels.sharing_weights(_inputs(shape).x, radius=radius, **SHARING, weights=table)
    return table


@cache
def _expected_weights(shape: Any, radius: int) -> Any:
    return _weights(ReferenceKernels(), shape, radius)


@cache
def _outside(shape: Any, radius: int) -> Any:
    """Which neighbours lie outside the image."""
    batch, _, height, width = shape
    ramp = np.arange(-radius, radius + 1)
    rows, columns = ramp[:, None] + np.arange(height), ramp[:, None] + np.arange(width)
    row_out = (rows < 0) | (rows >= height)
    column_out = (columns < 0) | (columns >= width)
    out = row_out[:, None, :, None] | column_out[None, :, None, :]
    return np.broadcast_to(
        out.reshape(1, -1, height, width), (batch, out[..., 0, 0].size, *shape[2:])
    )


def _direct(kernels: Any, shape: Any, radius: int) -> Any:
    i, shared = _inputs(shape), np.full(shape, 7, np.float32)
    kernels.share_gradient_direct(i.g, i.x, radius=radius, **SHARING, shared=shared)
    return shared


@cache
def _expected_direct(shape: Any, radius: int) -> Any:
    return _direct(ReferenceKernels(), shape, radius)


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def image_shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = request.param
    return found


@pytest.mark.parametrize("term", ["total_variation", "log_penalty", "mixture_prior"])
def test_terms_match_reference(kernels: Any, image_shape: Any, term: str) -> None:
    gradient, value = _added(kernels, image_shape, term)
    wanted, total = _expected(image_shape, term)
    tolerance = PRIOR if term == "mixture_prior" else ELEMENT
    np.testing.assert_allclose(gradient, wanted, **tolerance)
    np.testing.assert_allclose(value, total, **SUM)


@pytest.mark.parametrize("radius", [0, 2, 5])
def test_sharing_matches_reference(kernels: Any, image_shape: Any, radius: int) -> None:
    table = _weights(kernels, image_shape, radius)
    wanted = _expected_weights(image_shape, radius)
    np.testing.assert_allclose(table.astype(float), wanted.astype(float), **TABLE)
    assert not table[_outside(image_shape, radius)].any()
    found = _direct(kernels, image_shape, radius)
    np.testing.assert_allclose(found, _expected_direct(image_shape, radius), **SHARED)


@pytest.mark.parametrize("radius", [0, 2, 5])
def test_share_gradient_matches_reference(
    kernels: Any, reference: Any, image_shape: Any, radius: int
) -> None:
    i = _inputs(image_shape)
    rng = np.random.default_rng(5)
    size = (image_shape[0], (2 * radius + 1) ** 2, *image_shape[2:])
    weights = rng.normal(size=size).astype(np.float16)  # any halves, not those of an image
    found, wanted = np.full((2, *image_shape), 7, np.float32)
    kernels.share_gradient(i.g, weights, radius=radius, shared=found)
    reference.share_gradient(i.g, weights, radius=radius, shared=wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-5)  # sums near 30


@pytest.mark.parametrize("sigma_space", [1e-3, 50.0])
def test_sharing_takes_narrow_and_wide_neighbourhoods(kernels: Any, sigma_space: float) -> None:
    """Narrow: every weight but the pixel's own is 0. Wide: none is left out."""
    shape = (1, 3, 37, 53)
    i = _inputs(shape)
    settings = {"radius": 3, "sigma_space": sigma_space, "sigma_colour": 3.0}
    found, wanted = np.empty((2, *shape), np.float32)
    kernels.share_gradient_direct(i.g, i.x, **settings, shared=found)
    ReferenceKernels().share_gradient_direct(i.g, i.x, **settings, shared=wanted)
    np.testing.assert_allclose(found, wanted, **SHARED)
    table = np.empty((1, 49, 37, 53), np.float16)
    kernels.sharing_weights(i.x, **settings, weights=table)
    if sigma_space < 1:
        np.testing.assert_array_equal(found, i.g)
        assert table.sum() == table[:, 24].sum() == 37 * 53
    else:
        assert (table[:, :, 3:-3, 3:-3].max(axis=(2, 3)) > 0).all()
        np.testing.assert_allclose(table.astype(float).sum(1), 1, atol=2e-3)


def test_adan_matches_reference(kernels: Any, reference: Any, image_shape: Any) -> None:
    i = _inputs(image_shape)
    states = [[i.n.copy(), *(np.zeros_like(i.n) for _ in range(4))] for _ in range(2)]
    states[0][4][...] = np.nan  # what `previous` holds before the first step is nobody's business
    rng = np.random.default_rng(7)
    settings = {"clip": 1.5, "lower": 0.5, "upper": 3.5, "floor": 0.1, "rate": 0.01 * i.weight}
    for step in (1, 2, 3, 4):
        g = rng.normal(size=image_shape).astype(np.float32)
        for implementation, (n, *moments) in zip((kernels, reference), states, strict=True):
            implementation.adan(n, i.x, g, *moments, i.free, step=step, **settings)
    # Four steps, each of half a dozen roundings; n is divided by distances down to 0.1.
    for found, wanted in zip(*states, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    fixed = np.broadcast_to(i.free == 0, image_shape)
    np.testing.assert_array_equal(states[0][0][fixed], i.n[fixed])
