"""Losses of autoencoders against scikit-image, torch's distributions and differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from unblemish.calibration.training.energy_losses import (
    divergence,
    dssim_map,
    gaussian_terms,
    reconstruction_loss,
)
from unblemish.export.models.autoencoder import Reconstruction

# float64 both; the variances are differences of nearly equal sums.
SAME = {"rtol": 1e-9, "atol": 1e-10}


@pytest.mark.parametrize("shape", [(11, 11), (17, 40), (64, 64)])
def test_dssim_is_that_of_scikit_image(shape: tuple[int, int], rng: np.random.Generator) -> None:
    one = rng.random((2, 3, *shape))
    other = np.clip(one + rng.normal(0, 0.2, one.shape), 0, 1)
    found = dssim_map(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    for item in range(2):
        for channel in range(3):
            _, similarity = structural_similarity(
                one[item, channel], other[item, channel], data_range=1.0, gaussian_weights=True,
                sigma=1.5, use_sample_covariance=False, full=True,
            )  # fmt: skip
            np.testing.assert_allclose(found[item, channel], (1 - similarity) / 2, **SAME)


def test_dssim_of_equal_images_is_zero_and_grows_with_noise(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.random((1, 1, 20, 20)))
    noise = torch.from_numpy(rng.normal(0, 1, (1, 1, 20, 20)))
    means = [float(dssim_map(image, image + size * noise).mean()) for size in (0, 0.05, 0.2)]
    assert means[0] == pytest.approx(0, abs=1e-12)
    assert means == sorted(means)


def test_dssim_has_the_gradient_of_its_differences(rng: np.random.Generator) -> None:
    image, other = (torch.from_numpy(rng.random((1, 1, 7, 6))).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: dssim_map(x, y).sum(), (image, other))


def test_gaussian_terms_are_a_normal_likelihood_up_to_its_constant(
    rng: np.random.Generator,
) -> None:
    image, mean, log_scale = (torch.from_numpy(rng.normal(size=(2, 1, 4, 4))) for _ in range(3))
    likelihood = torch.distributions.Normal(mean, log_scale.exp()).log_prob(image)
    expected = -likelihood - 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(gaussian_terms(image, mean, log_scale), expected, **SAME)


def test_divergence_is_that_of_normal_distributions(rng: np.random.Generator) -> None:
    mean, log_variance = (torch.from_numpy(rng.normal(size=(3, 5))) for _ in range(2))
    code = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(code, prior).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected, **SAME)


def test_losses_of_images_are_sums_over_their_elements(rng: np.random.Generator) -> None:
    image, other, log_scale = (torch.from_numpy(rng.random((2, 3, 16, 16))) for _ in range(3))
    mean = torch.zeros(2, 4)
    plain = Reconstruction(other, mean, mean, None)
    squares = (image - other).square().sum((1, 2, 3))
    torch.testing.assert_close(reconstruction_loss("l2", image, plain), squares, **SAME)
    expected = dssim_map(image, other).sum((1, 2, 3))
    torch.testing.assert_close(reconstruction_loss("dssim", image, plain), expected, **SAME)
    gamma = torch.tensor(0.3, dtype=torch.float64)
    found = reconstruction_loss("gaussian", image, plain, gamma.log())
    expected = squares / (2 * 0.09) + image[0].numel() * np.log(0.3)
    torch.testing.assert_close(found, expected, **SAME)
    local = reconstruction_loss("gaussian", image, Reconstruction(other, mean, mean, log_scale))
    expected = gaussian_terms(image, other, log_scale).sum((1, 2, 3))
    torch.testing.assert_close(local, expected, **SAME)
