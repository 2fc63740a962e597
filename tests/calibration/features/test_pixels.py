"""The pixel prior."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.calibration.features.pixels import FLOOR, PixelSampler, fit_mixtures
from unblemish.errors import CalibrationError


def two_colours(channels: int, count: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = np.array([[0.2, 0.3, 0.4], [0.8, 0.7, 0.5]])[:, :channels]
    rows = centres[np.arange(count) % 2] + rng.normal(scale=0.05, size=(count, channels))
    return rows.astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_mixtures_finds_the_colours(channels: int) -> None:
    one, two = fit_mixtures(two_colours(channels), (1, 2), seed=0)
    assert len(one.weights) == 1
    assert np.array(one.means).shape == (1, channels)
    assert np.array(two.precisions).shape == (2, channels, channels)
    # 1,000 pixels a colour: a mean is known to .05 / sqrt(1000) = .0016, four times that here.
    found = np.array(sorted(two.means))
    np.testing.assert_allclose(
        found, np.array([[0.2, 0.3, 0.4], [0.8, 0.7, 0.5]])[:, :channels], atol=0.0064
    )
    # The variance of .0025 is known to 4.5 % from so many; the prior of one pixel shrinks it too.
    np.testing.assert_allclose(
        [np.diag(p) for p in two.precisions], np.full((2, channels), 400.0), rtol=0.15
    )


def test_fit_mixtures_of_one_component_is_mean_and_covariance() -> None:
    pixels = two_colours(3)
    (found,) = fit_mixtures(pixels, (1,), seed=0)
    np.testing.assert_allclose(found.means[0], pixels.mean(axis=0), atol=1e-3)
    want = np.cov(pixels.T.astype(np.float64)) + FLOOR * np.eye(3)
    np.testing.assert_allclose(np.linalg.inv(found.precisions[0]), want, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_mixtures_has_a_floor_when_the_image_is_flat(channels: int) -> None:
    for mixture in fit_mixtures(np.full((500, channels), 0.5, np.float32), (1, 5), seed=0):
        precision = np.array(mixture.precisions)
        assert np.isfinite(precision).all()
        assert (np.linalg.eigvalsh(precision) <= (1 + 1e-9) / FLOOR).all()
        np.testing.assert_allclose(mixture.means[0], 0.5, atol=1e-6)


def test_fit_mixtures_drops_what_no_pixel_needs() -> None:
    mixtures = fit_mixtures(two_colours(1), (1, 2, 8), seed=0)
    sizes = [len(m.weights) for m in mixtures]
    assert sizes == sorted(set(sizes))
    for mixture in mixtures:
        assert min(mixture.weights) > 0
        assert sum(mixture.weights) == pytest.approx(1.0)


def test_pixel_sampler_draws_from_every_frame() -> None:
    sampler = PixelSampler(4, total=100, seed=0)
    for level in range(4):
        sampler.update(np.full((5, 7, 1), level, np.float32))
    drawn, counts = np.unique(sampler.pixels(), return_counts=True)
    assert drawn.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [25] * 4


def test_pixel_sampler_refuses_nothing() -> None:
    with pytest.raises(CalibrationError, match="no normal image"):
        PixelSampler(0).pixels()
