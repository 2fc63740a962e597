"""The energy in the latent against torch, central differences, linear programs and kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.kernels import default_kernels
from unblemish.runtime.autoencoders import latent_method, load_code_engines
from unblemish.runtime.backends import open_backend
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.latent import LatentMethod

MakeBundle = Callable[..., Bundle]
Float = NDArray[np.float32]


@pytest.fixture
def method(make_energy_bundle: MakeBundle) -> Callable[..., LatentMethod]:
    """make(lam, schedule='fast', channels=1): of the linear autoencoder of cosines."""

    def make(lam: float, schedule: str = "fast", channels: int = 1) -> LatentMethod:
        bundle = make_energy_bundle(channels, latent=True, energy={"latent_lam": lam})
        engines = load_code_engines(bundle, open_backend(threads=1))
        return latent_method(bundle, engines, default_kernels(), schedule)

    return make


def problem(method: LatentMethod, images: Float) -> Inversion:
    """The objective that is searched."""
    targets = Targets(images, np.arange(len(images)))
    return method.method(images).inversion(targets, np.zeros((1, len(images)), np.float32))


def damaged(rng: np.random.Generator, basis: NDArray[Any], count: int, channels: int) -> Float:
    """Images that a few cosines make, a spot of each replaced."""
    codes = rng.standard_normal((count, basis.shape[1]))
    images = (0.5 + 0.3 * codes @ basis.T).reshape(count, channels, 16, 16)
    images[:, :, 3:7, 4:8] += 1.5
    return images.astype(np.float32)


@pytest.fixture
def basis() -> Callable[[int], NDArray[Any]]:
    """The columns of the decoder, (256 channels, 9 channels), as its graph holds them."""
    wave = np.cos(np.pi * np.outer(np.arange(16) + 0.5, np.arange(3)) / 16)
    wave /= np.linalg.norm(wave, axis=0)
    plane = np.einsum("ia,jb->ijab", wave, wave).reshape(256, 9)
    return lambda channels: np.kron(np.eye(channels), plane)


@pytest.mark.parametrize("channels", [1, 3])
def test_objective_is_equation_six_over_the_elements_by_torch(
    method: Any, basis: Any, rng: np.random.Generator, channels: int
) -> None:
    import torch

    columns, lam = basis(channels), 0.7
    x = rng.random((2, channels, 16, 16)).astype(np.float32)
    z = rng.standard_normal((2, 9 * channels)).astype(np.float32)
    leaf = torch.from_numpy(z).double().requires_grad_()
    drawn = (leaf @ torch.from_numpy(columns.T)).reshape(x.shape)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(leaf).sum(1)
    constant = -0.5 * z.shape[1] * np.log(2 * np.pi)
    energy = (torch.from_numpy(x) - drawn).abs().sum((1, 2, 3)) - lam * (prior - constant)
    (slope,) = torch.autograd.grad(energy.sum(), leaf)

    items = np.arange(2)
    found = problem(method(lam, channels=channels), x).evaluate((z,), items, 0 * items)
    np.testing.assert_allclose(x[0].size * found.value, energy.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(x[0].size * found.gradient[0], slope.numpy(), rtol=1e-3, atol=1e-4)


def test_gradient_matches_central_differences(method: Any, rng: np.random.Generator) -> None:
    x = (rng.random((1, 1, 16, 16)) + 5).astype(np.float32)  # above every image: no kinks
    z, direction = rng.standard_normal((2, 1, 9)).astype(np.float32)
    objective, item, h = problem(method(3.0), x), np.zeros(1, np.intp), np.float32(1e-2)
    above, below = (
        objective.evaluate((z + s * h * direction,), item, item).value.copy() for s in (1, -1)
    )
    gradient = objective.evaluate((z,), item, item).gradient[0]
    assert (gradient * direction).sum() == pytest.approx((above - below)[0] / (2 * h), rel=5e-3)


# Adam's steps keep their length, so that it hovers around the kinks.
@pytest.mark.parametrize(("schedule", "above", "apart"), [("fast", 0.01, 0.1), ("paper", 0.1, 0.3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_prior_it_is_the_linear_program(
    method: Any,
    basis: Any,
    rng: np.random.Generator,
    schedule: str,
    above: float,
    apart: float,
    channels: int,
) -> None:
    """min over z and t of sum t with -t <= x - B z <= t."""
    from scipy.optimize import linprog

    columns, x = basis(channels), damaged(rng, basis(channels), 1, channels)
    pixels, size = columns.shape
    cost = np.concatenate([np.zeros(size), np.ones(pixels)])
    bounds = [(None, None)] * size + [(0, None)] * pixels
    both = np.block([[-columns, -np.eye(pixels)], [columns, -np.eye(pixels)]])
    flat = x.ravel().astype(np.float64)
    program = linprog(cost, both, np.concatenate([-flat, flat]), bounds=bounds)

    found = method(1e-6, schedule, channels).solve(x, max_steps=300)
    assert found.value[0] == pytest.approx(program.fun, rel=above)
    # The spot is left alone and everything else is met: l1 is robust.
    difference = abs(found.images - x)[0].max(axis=0)
    assert difference[3:7, 4:8].min() > 1
    difference[3:7, 4:8] = 0
    assert difference.max() < apart


@pytest.mark.parametrize(("lam", "best"), [(40.0, 0.4), (1.0, 8.0)])
def test_of_a_grey_image_the_minimum_is_known(method: Any, lam: float, best: float) -> None:
    """Of |x - z b|_1 + lam z^2 / 2 with x = 1/2 and b = 1/16 in all 256 pixels, best is at
    min(256 b / lam, x / b): where the prior holds, or at the kink."""
    x = np.full((1, 1, 16, 16), 0.5, np.float32)  # in which the other cosines have no part
    found = method(lam).solve(x, max_steps=200)
    assert found.codes[0, 0] == pytest.approx(best, rel=1e-3)
    np.testing.assert_allclose(found.codes[0, 1:], 0, atol=1e-3)
    least = 256 * abs(0.5 - best / 16) + lam / 2 * best**2
    assert found.value[0] == pytest.approx(least, rel=1e-3)


def test_search_begins_at_the_code_of_the_image(
    method: Any, basis: Any, rng: np.random.Generator
) -> None:
    x = damaged(rng, basis(1), 3, 1)
    first = method(1e-3).solve(x, max_steps=1)
    np.testing.assert_allclose(first.codes, x.reshape(3, -1) @ basis(1), rtol=1e-4, atol=1e-5)
    drawn = (first.codes @ basis(1).T).reshape(x.shape)
    np.testing.assert_allclose(first.images, drawn, rtol=1e-4, atol=1e-5)
    assert first.status == (Status.MAX_STEPS,) * 3
    value = abs(x - drawn).sum((1, 2, 3)) + 5e-4 * (first.codes**2).sum(1)
    np.testing.assert_allclose(first.value, value, rtol=1e-4)
    np.testing.assert_allclose([trace[0] for trace in first.trace], value, rtol=1e-4)


def test_a_likely_code_is_short(method: Any, basis: Any, rng: np.random.Generator) -> None:
    x = damaged(rng, basis(1), 2, 1)
    norms = [np.linalg.norm(method(lam).solve(x).codes, axis=1) for lam in (1e-3, 1.0, 30.0)]
    assert (norms[0] > norms[1]).all()
    assert (norms[1] > norms[2]).all()
