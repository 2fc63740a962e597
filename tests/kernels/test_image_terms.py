"""The terms of F2PAD against torch's autograd in float64, `unfold`, and a transcription of Adan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ShapeError

torch = pytest.importorskip("torch")

SHAPES = [(1, 1, 1, 1), (2, 3, 1, 7), (1, 3, 19, 5), (3, 1, 13, 17)]
# float32 against float64: a few roundings per pixel, relative to the largest component.
RELATIVE = 2e-5
HALF = 2e-3  # weights are stored in half precision: 11 bits each


def image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 4


def both(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    n, x = image(shape, 0), image(shape, 1)
    free = (np.random.default_rng(2).random((shape[0], 1, *shape[2:])) < 0.7).astype(np.uint8)
    weight = np.linspace(0.5, 2, shape[0]).astype(np.float32)
    return n, x, free, weight


def judge(run, loss, n: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    """Value and gradient of `run`, which adds, against torch."""
    gradient = np.ones_like(n)
    value = np.full(len(n), 3.0)
    run(gradient, value)
    t = torch.tensor(n, dtype=torch.float64, requires_grad=True)
    each = loss(t)
    (expected,) = torch.autograd.grad(each.sum(), t)
    np.testing.assert_allclose(value - 3, each.detach().numpy(), rtol=1e-5, atol=1e-5)
    scale = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(gradient - 1, expected.numpy(), atol=RELATIVE * scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_total_variation_is_that_of_torch(kernels: Any, shape: tuple[int, ...]) -> None:
    n, _, _, weight = both(shape)

    def loss(t):  # type: ignore[no-untyped-def]
        down = (t[:, :, 1:] - t[:, :, :-1]).norm(dim=1).sum((1, 2))
        across = (t[..., 1:] - t[..., :-1]).norm(dim=1).sum((1, 2))
        return torch.tensor(weight, dtype=torch.float64) * (down + across)

    judge(lambda g, v: kernels.total_variation(n, weight, gradient=g, value=v), loss, n)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_penalty_is_that_of_torch(kernels: Any, shape: tuple[int, ...]) -> None:
    n, x, free, weight = both(shape)

    def loss(t):  # type: ignore[no-untyped-def]
        a = (torch.tensor(x, dtype=torch.float64) - t).norm(dim=1)
        each = torch.log((a * a + 1e-4).sqrt() + a) * torch.tensor(free[:, 0])
        return torch.tensor(weight, dtype=torch.float64) * each.sum((1, 2))

    def run(g: np.ndarray, v: np.ndarray) -> None:
        kernels.log_penalty(x, n, weight, free, epsilon=1e-4, gradient=g, value=v)

    judge(run, loss, n)


@pytest.mark.parametrize("shape", SHAPES)
def test_mixture_prior_is_that_of_torch(kernels: Any, shape: tuple[int, ...]) -> None:
    n, _, free, weight = both(shape)
    rng = np.random.default_rng(5)
    channels = shape[1]
    means = rng.random((3, channels), dtype=np.float32) * 4
    root = rng.normal(size=(3, channels, channels))
    precisions = (root @ root.transpose(0, 2, 1) + np.eye(channels)).astype(np.float32)

    def loss(t):  # type: ignore[no-untyped-def]
        d = t[:, None] - torch.tensor(means, dtype=torch.float64)[:, :, None, None]
        p = torch.tensor(precisions, dtype=torch.float64)
        near = torch.einsum("bqchw,qcd,bqdhw->bqhw", d, p, d).min(1).values
        return torch.tensor(weight, dtype=torch.float64) * (near * torch.tensor(free[:, 0])).sum(
            (1, 2)
        )

    def run(g: np.ndarray, v: np.ndarray) -> None:
        kernels.mixture_prior(n, means, precisions, weight, free, gradient=g, value=v)

    judge(run, loss, n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("radius", "sigma"), [(0, 1.1), (1, 1.1), (5, 1.1), (15, 30.0)])
def test_sharing_is_that_of_unfold(
    kernels: Any, shape: tuple[int, ...], radius: int, sigma: float
) -> None:
    x, gradient = image(shape, 3), image(shape, 4) - 2
    side = 2 * radius + 1
    batch, _, height, width = shape

    def patches(t):  # type: ignore[no-untyped-def]
        padded = torch.nn.functional.pad(t, (radius,) * 4)
        found = torch.nn.functional.unfold(padded, side)
        return found.view(batch, t.shape[1], side * side, height, width)

    t = torch.tensor(x, dtype=torch.float64)
    inside = patches(torch.ones(batch, 1, height, width, dtype=torch.float64))[:, 0]
    ramp = torch.arange(-radius, radius + 1, dtype=torch.float64)
    space = torch.exp(-(ramp[:, None] ** 2 + ramp**2) / sigma).reshape(-1, 1, 1)
    colour = torch.exp(-(patches(t) - t[:, :, None]).square().sum(1) / 3.0)
    expected = space * colour * inside
    expected = expected / expected.sum(1, keepdim=True)
    shared = (patches(torch.tensor(gradient, dtype=torch.float64)) * expected[:, None]).sum(2)

    weights = np.empty((batch, side * side, height, width), np.float16)
    settings = {"radius": radius, "sigma_space": sigma, "sigma_colour": 3.0}
    kernels.sharing_weights(x, **settings, weights=weights)
    np.testing.assert_allclose(weights, expected.numpy(), atol=HALF)
    out = np.empty_like(x)
    kernels.share_gradient(gradient, weights, radius=radius, shared=out)
    np.testing.assert_allclose(out, shared.numpy(), atol=2 * HALF)
    kernels.share_gradient_direct(gradient, x, **settings, shared=out)
    np.testing.assert_allclose(out, shared.numpy(), atol=RELATIVE)


def test_adan_is_its_transcription_and_moves_free_pixels_alone(kernels: Any) -> None:
    n, x, free, _ = both((2, 3, 4, 5))
    start = n.copy()
    rate = np.array([0.01, 0.02], np.float32)
    moments = [np.zeros_like(n) for _ in range(4)]
    m = v = s = before = np.zeros(n.shape)
    expected = n.astype(np.float64)
    for step in range(1, 6):
        g = image(n.shape, 10 + step) - 2
        kernels.adan(
            n, x, g, *moments, free,
            step=step, rate=rate, clip=1.5, lower=0.0, upper=4.0, floor=0.1,
        )  # fmt: skip
        clipped = np.clip(g.astype(np.float64), -1.5, 1.5)
        d = clipped - before if step > 1 else np.zeros(n.shape)
        m = 0.98 * m + 0.02 * clipped
        v = 0.92 * v + 0.08 * d
        s = 0.99 * s + 0.01 * (clipped + 0.92 * d) ** 2
        up = (m / (1 - 0.98**step) + 0.92 * v / (1 - 0.92**step)) / (
            np.sqrt(s / (1 - 0.99**step)) + 1e-8
        )
        gamma = rate.reshape(-1, 1, 1, 1) / np.maximum(np.abs(x - expected), 0.1)
        expected = np.where(free != 0, np.clip(expected - gamma * up, 0, 4), expected)
        before = clipped
    np.testing.assert_allclose(n, expected, atol=1e-4)
    fixed = np.broadcast_to(free == 0, n.shape)
    np.testing.assert_array_equal(n[fixed], start[fixed])


def test_flat_images_give_no_slope(kernels: Any) -> None:
    n = np.ones((1, 3, 4, 4), np.float32)
    gradient, value = np.zeros_like(n), np.zeros(1)
    weight = np.ones(1, np.float32)
    kernels.total_variation(n, weight, gradient=gradient, value=value)
    free = np.ones((1, 1, 4, 4), np.uint8)
    kernels.log_penalty(n, n, weight, free, epsilon=1e-4, gradient=gradient, value=value)
    assert not gradient.any()
    np.testing.assert_allclose(value, 16 * np.log(0.01), rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused(kernels: Any) -> None:
    with pytest.raises(ShapeError, match="total_variation"):
        kernels.total_variation(
            np.ones((1, 1, 2, 2), np.float32), np.ones(1, np.float32),
            gradient=np.ones((1, 1, 2, 3), np.float32), value=np.zeros(1),
        )  # fmt: skip
