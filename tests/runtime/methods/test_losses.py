"""Losses and further terms against the minimisation they stand for, and central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.errors import ConfigError
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.methods.losses import image_loss
from unblemish.runtime.methods.terms import (
    DiscriminatorTerm,
    FeatureTerm,
    ImageTerm,
    add_latent_prior,
)

DIFFERENCES = 2e-3  # relative: central differences of float32 values


@pytest.fixture
def images(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x, g = rng.random((2, 2, 3, 5, 7)).astype(np.float32)
    return x, g


def call(
    loss: Any, x: NDArray[np.float32], g: NDArray[np.float32], lam: float, *, shared: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    rows, channels, height, width = g.shape
    mask = np.full((rows, 1 if shared else channels, height, width), np.nan, np.float32)
    cotangent = np.full_like(g, np.nan)
    value = np.full(rows, np.nan)
    weights, scale = np.full(rows, lam, np.float32), np.full(rows, 1 / g[0].size, np.float32)
    loss(x, g, weights, scale, mask=mask, cotangent=cotangent, objective=value)
    return value, cotangent, mask


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("norm", "lam"), [("l2", 0.3), ("l1", 0.4)])
def test_profile_is_the_minimum_over_the_mask(
    images: tuple[NDArray[np.float32], NDArray[np.float32]], norm: str, lam: float, shared: bool
) -> None:
    x, g = images
    value, _, mask = call(
        image_loss(default_kernels(), norm, masked=True), x, g, lam, shared=shared
    )
    r = np.abs((g - x).astype(np.float64)) ** (2 if norm == "l2" else 1)
    error = r.sum(axis=1, keepdims=True) if shared else r
    grid = np.linspace(0, 1, 2001)
    keep = (1 - grid) ** (2 if norm == "l2" else 1)
    tried = keep * error[..., None] + lam * grid
    np.testing.assert_allclose(value, tried.min(-1).sum((1, 2, 3)) / g[0].size, rtol=1e-5)
    chosen = (1 - mask) ** (2 if norm == "l2" else 1) * error + lam * mask
    np.testing.assert_allclose(chosen, tried.min(-1), atol=1e-5)
    assert 0 < (mask > 0).mean() < 1


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shared", [True, False])
def test_loss_cotangent_matches_central_differences(
    images: tuple[NDArray[np.float32], NDArray[np.float32]], norm: str, masked: bool, shared: bool
) -> None:
    x, g = images
    loss = image_loss(default_kernels(), norm, masked=masked)
    _, cotangent, _ = call(loss, x, g, 0.35, shared=shared)
    direction = np.random.default_rng(1).standard_normal(g.shape).astype(np.float32)
    h = 1e-4
    above, _, _ = call(loss, x, g + h * direction, 0.35, shared=shared)
    below, _, _ = call(loss, x, g - h * direction, 0.35, shared=shared)
    slope = (above - below) / (2 * h)
    expected = (cotangent.astype(np.float64) * direction).sum((1, 2, 3))
    np.testing.assert_allclose(expected, slope, rtol=DIFFERENCES, atol=1e-3)


def test_image_loss_refuses_an_unknown_norm() -> None:
    with pytest.raises(ConfigError, match="'l3'"):
        image_loss(default_kernels(), "l3", masked=True)


def _term(bundle: Bundle, kind: str) -> ImageTerm:
    pair = open_backend(threads=1).pair(
        str(bundle.graph(f"{kind}_forward")),  # type: ignore[arg-type]
        str(bundle.graph(f"{kind}_backward")),  # type: ignore[arg-type]
    )
    return DiscriminatorTerm(pair, 0.7) if kind == "discriminator" else FeatureTerm(pair, 0.7)


@pytest.mark.parametrize("kind", ["discriminator", "features"])
def test_term_cotangent_matches_central_differences(rich_bundle: Bundle, kind: str) -> None:
    rng = np.random.default_rng(2)
    x, g, direction = rng.random((3, 2, 3, 16, 16)).astype(np.float32)
    mask = (rng.random((2, 1, 16, 16)) > 0.7).astype(np.float32)
    term = _term(rich_bundle, kind)

    def evaluate(image: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        value, cotangent = np.ones(2), np.ones_like(image)
        term.add(x, image, mask, cotangent=cotangent, value=value)
        return value - 1, cotangent - 1

    _, cotangent = evaluate(g)
    h = 1e-2
    slope = (evaluate(g + h * direction)[0] - evaluate(g - h * direction)[0]) / (2 * h)
    np.testing.assert_allclose((cotangent * direction).sum((1, 2, 3)), slope, rtol=1e-2)


def test_discriminator_term_is_softplus_of_the_score(
    rich_bundle: Bundle, generate: Callable[..., NDArray[np.float64]]
) -> None:
    backend = open_backend(threads=1)
    program = backend.pair(
        str(rich_bundle.graph("discriminator_forward")),
        str(rich_bundle.graph("discriminator_backward")),
    )
    image = generate(np.zeros((1, 4))).astype(np.float32)
    logit = float(program.forward({"image": image})["logit"][0, 0])
    value = np.zeros(1)
    term = DiscriminatorTerm(program, 0.1)
    zeros = np.zeros((1, 1, 16, 16), np.float32)
    term.add(image, image, zeros, cotangent=np.zeros_like(image), value=value)
    assert value[0] == pytest.approx(0.1 * np.log1p(np.exp(-logit)), rel=1e-5)


def test_feature_term_ignores_what_the_mask_covers(rich_bundle: Bundle) -> None:
    rng = np.random.default_rng(2)
    x = rng.random((1, 3, 16, 16)).astype(np.float32)
    g = x.copy()
    mask = np.zeros((1, 1, 16, 16), np.float32)
    mask[..., 3:6, 3:6] = 1
    g[..., 3:6, 3:6] += 0.5
    value, cotangent = np.zeros(1), np.zeros_like(g)
    _term(rich_bundle, "features").add(x, g, mask, cotangent=cotangent, value=value)
    assert value[0] == 0
    assert not cotangent.any()


def test_latent_prior_is_the_mean_square() -> None:
    z = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    value, gradient = np.zeros(2), np.zeros_like(z)
    add_latent_prior(z, 0.1, gradient=gradient, value=value)
    np.testing.assert_allclose(value, [1.25, 0.05])
    np.testing.assert_allclose(gradient, 0.1 * z)
