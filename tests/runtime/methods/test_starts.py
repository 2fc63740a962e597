"""The bank of latents picks what its definition says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.methods.starts import LatentBank, thumbnails


def test_bank_nearest_is_the_best_by_mean_squared_error(
    generate: Callable[..., NDArray[np.float64]],
) -> None:
    bank = LatentBank.build(lambda z: generate(z).astype(np.float32), 200, 4)
    x = generate(np.random.default_rng(9).standard_normal((3, 4))).astype(np.float32)
    errors = np.square(generate(bank.latents)[None] - x[:, None]).mean((2, 3, 4))
    chosen = bank.nearest(x, 1, np.full(3, 0.1, np.float32))
    np.testing.assert_array_equal(chosen[:, 0], bank.latents[errors.argmin(axis=1)])


def test_bank_second_pick_is_the_best_by_the_robust_loss(
    generate: Callable[..., NDArray[np.float64]],
) -> None:
    bank = LatentBank.build(lambda z: generate(z).astype(np.float32), 200, 4)
    truth = bank.latents[17:18]
    x = generate(truth).astype(np.float32)
    # Half the image is another part with its contrast doubled: least squares follows that half.
    x[:, :, :8] = 2 * generate(bank.latents[3:4])[:, :, :8] - 0.5
    two = bank.nearest(x, 2, np.full(1, 0.05, np.float32))
    assert two.shape == (1, 2, 4)
    np.testing.assert_array_equal(two[0, 1], truth[0])
    assert not np.array_equal(two[0, 0], two[0, 1])


def test_bank_is_the_same_every_time() -> None:
    def generate(z: NDArray[np.float32]) -> NDArray[np.float32]:
        return z.reshape(-1, 1, 2, 2)

    first, second = (LatentBank.build(generate, 30, 4, batch=b) for b in (7, 30))
    np.testing.assert_array_equal(first.latents, second.latents)
    np.testing.assert_array_equal(first.thumbnails, second.thumbnails)


def test_thumbnails_are_area_averages() -> None:
    images = np.random.default_rng(0).random((2, 3, 64, 128)).astype(np.float32)
    small = thumbnails(images)
    expected = images.reshape(2, 3, 8, 8, 16, 8).mean((3, 5))
    np.testing.assert_allclose(small, expected, atol=1e-6)
