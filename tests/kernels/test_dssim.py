"""Structural dissimilarity against scikit-image, torch's autograd, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage import metrics

# float32 against float64: variances keep 2e-7 of a window's square, over C2 = 9e-4.
MAP = {"rtol": 0, "atol": 5e-6}
GRADIENT = 2e-5  # of the largest component: a few hundred roundings, and the same cancellation


def images(shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    """A rough image in [0, 1], and one that looks like it."""
    rng = np.random.default_rng(seed)
    x = rng.random(shape, dtype=np.float32)
    g = np.clip(x + 0.2 * rng.normal(size=shape), 0, 1).astype(np.float32)
    return x, g


def run(kernels: Any, x: Any, g: Any, scale: Any = None, **settings: Any) -> tuple[Any, ...]:
    """Dissimilarity, direct, cotangent, objective."""
    scale = np.ones(len(x), np.float32) if scale is None else scale
    out = {
        "dissimilarity": np.full((len(x), 1, *x.shape[2:]), 7, np.float32),
        "direct": np.full_like(x, 7),
        "cotangent": np.full_like(x, 7),
        "objective": np.full(len(x), 7.0),
    }
    kernels.dssim(x, g, scale, **{"data_range": 1.0, **settings}, **out)
    return tuple(out.values())


@pytest.mark.parametrize(("channels", "size"), [(1, (11, 11)), (1, (37, 53)), (3, (64, 130))])
@pytest.mark.parametrize("sigma", [1.5, 0.8])
def test_map_is_that_of_scikit_image(
    kernels: Any, reference: Any, channels: int, size: tuple[int, int], sigma: float
) -> None:
    x, g = images((2, channels, *size))
    window = 2 * int(3.5 * sigma + 0.5) + 1
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "full": True}
    wide = x.astype(np.float64), g.astype(np.float64)
    for b in range(2):
        mean, ssim = metrics.structural_similarity(
            wide[0][b], wide[1][b], channel_axis=0, data_range=1.0, sigma=sigma, **settings
        )
        expected = (1 - ssim.mean(axis=0)) / 2
        radius = window // 2
        inner = expected[radius : size[0] - radius, radius : size[1] - radius]
        np.testing.assert_allclose(inner.mean(), (1 - mean) / 2, rtol=1e-12)
        for implementation, tolerance in ((kernels, MAP), (reference, {"rtol": 0, "atol": 1e-7})):
            found, _, _, objective = run(implementation, x, g, window=window, sigma=sigma)
            np.testing.assert_allclose(found[b, 0], expected, **tolerance)
            np.testing.assert_allclose(objective[b], expected.sum(), rtol=1e-6)


def _torch_dssim(torch: Any, x: Any, g: Any, window: int, sigma: float, data_range: float) -> Any:
    """(1 - SSIM) / 2 as written in the paper, the image padded by index."""

    def index(length: int) -> Any:
        turn = np.arange(-(window // 2), length + window // 2) % (2 * length)
        return torch.tensor(np.where(turn < length, turn, 2 * length - 1 - turn))

    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()

    def mean(v: Any) -> Any:
        v = v[:, :, index(v.shape[2])][..., index(v.shape[3])].flatten(0, 1)[:, None]
        v = torch.nn.functional.conv2d(v, (weights[:, None] * weights)[None, None])
        return v.reshape(x.shape)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mu_x, mu_g = mean(x), mean(g)
    var_x, var_g = mean(x * x) - mu_x**2, mean(g * g) - mu_g**2
    cov = mean(x * g) - mu_x * mu_g
    top = (2 * mu_x * mu_g + c1) * (2 * cov + c2)
    return (1 - top / ((mu_x**2 + mu_g**2 + c1) * (var_x + var_g + c2))) / 2


@pytest.mark.parametrize(
    ("shape", "window", "sigma", "data_range"),
    [
        ((1, 1, 1, 1), 11, 1.5, 1.0),
        ((2, 3, 1, 7), 11, 1.5, 1.0),
        ((1, 3, 19, 5), 33, 4.0, 2.0),
        ((3, 1, 23, 31), 11, 1.5, 255.0),
        ((1, 4, 70, 41), 5, 0.7, 1.0),
    ],
)
def test_gradients_are_those_of_torch(
    kernels: Any,
    reference: Any,
    shape: tuple[int, ...],
    window: int,
    sigma: float,
    data_range: float,
) -> None:
    torch = pytest.importorskip("torch")
    x, g = (v * np.float32(data_range) for v in images(shape))
    scale = np.linspace(0.5, 2, shape[0]).astype(np.float32)
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, g)]
    each = _torch_dssim(torch, *leaves, window, sigma, data_range).mean(1).sum((1, 2))
    total = torch.tensor(scale, dtype=torch.float64) * each
    expected = [v.numpy() for v in torch.autograd.grad(total.sum(), leaves)]
    settings = {"window": window, "sigma": sigma, "data_range": data_range}
    for implementation, relative in ((kernels, GRADIENT), (reference, 2e-7)):
        _, *found, objective = run(implementation, x, g, scale, **settings)
        np.testing.assert_allclose(objective, total.detach().numpy(), rtol=1e-5)
        for ours, wanted in zip(found, expected, strict=True):
            # A single pixel has no variance: its slopes cancel, 500 times C2's inverse.
            largest = max(abs(wanted).max(), 1.0 / data_range)
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=relative * largest)


def test_reference_gradients_are_central_differences() -> None:
    from unblemish.kernels.reference.dssim import dssim

    x, g = (v.astype(np.float64) for v in images((2, 2, 5, 7)))
    scale = np.array([0.5, 2.0])
    settings = {"data_range": 1.0, "window": 11, "sigma": 1.5}
    _, direct, cotangent, _ = dssim(x, g, scale, **settings)
    step = 1e-6
    for image, gradient in ((x, direct), (g, cotangent)):
        for at in np.ndindex(image.shape):
            kept = image[at]
            ends = []
            for moved in (kept + step, kept - step):
                image[at] = moved
                ends.append(dssim(x, g, scale, **settings)[3].sum())
            image[at] = kept
            slope = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(slope, gradient[at], rtol=1e-5, atol=1e-7)


def test_equal_images_have_none(kernels: Any, reference: Any) -> None:
    x, _ = images((2, 3, 40, 41))
    for implementation in (kernels, reference):
        found = run(implementation, x, x.copy())
        tolerance = 0 if implementation is kernels else 1e-12
        for result in found:
            np.testing.assert_allclose(result, 0, atol=tolerance)


def test_flat_images_differ_by_their_luminance_alone(kernels: Any) -> None:
    x, g = np.full((1, 1, 20, 20), 0.25, np.float32), np.full((1, 1, 20, 20), 0.75, np.float32)
    found = run(kernels, x, g)
    luminance = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    np.testing.assert_allclose(found[0], (1 - luminance) / 2, rtol=2e-5)


def test_dssim_is_symmetric_and_turns_with_the_image(kernels: Any) -> None:
    x, g = images((1, 3, 33, 47))
    there, back = run(kernels, x, g), run(kernels, g, x)
    np.testing.assert_allclose(there[0], back[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(there[1], back[2], rtol=0, atol=1e-5)
    x_t, g_t = (np.ascontiguousarray(v.transpose(0, 1, 3, 2)) for v in (x, g))
    turned = run(kernels, x_t, g_t)
    np.testing.assert_allclose(turned[0], there[0].transpose(0, 1, 3, 2), **MAP)


def test_window_of_one_compares_luminance_pixel_by_pixel(kernels: Any) -> None:
    x, g = images((1, 1, 9, 13))
    found = run(kernels, x, g, window=1)
    wide_x, wide_g = x.astype(np.float64), g.astype(np.float64)
    luminance = (2 * wide_x * wide_g + 1e-4) / (wide_x**2 + wide_g**2 + 1e-4)
    np.testing.assert_allclose(found[0], (1 - luminance) / 2, **MAP)
