"""The latents' lengths against the Jacobian of a linear generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.metric import latent_lengths


class Linear(GeneratorEngine):
    """G(z) = A z as images of one row."""

    def __init__(self, matrix: np.ndarray[Any, Any]) -> None:
        self.matrix = matrix

    def forward(self, z: Any, weights: Any = None) -> Any:
        return (z @ self.matrix.T)[:, None, None]

    def backward(self, cotangent: Any) -> Any:
        return cotangent[:, 0, 0] @ self.matrix, {}


def test_latent_lengths_are_those_of_the_jacobian() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((400, 6)) * np.array([10, 3, 1, 0.3, 1, 1])
    latents = np.zeros((400, 6), np.float32)
    found = latent_lengths(Linear(matrix), latents)
    h = 2 / 400 * np.square(matrix).sum(axis=0)
    expected = 1 / np.sqrt(h + 1e-3 * h.mean())
    np.testing.assert_allclose(found, expected, rtol=0.15)  # 400 samples: 1 / sqrt(2 * 400) each


def test_latent_lengths_are_finite_for_latents_that_move_nothing() -> None:
    matrix = np.zeros((50, 3))
    assert latent_lengths(Linear(matrix), np.zeros((2, 3), np.float32)).tolist() == [1, 1, 1]
    matrix[:, 0] = 1
    found = latent_lengths(Linear(matrix), np.zeros((50, 3), np.float32))
    assert np.isfinite(found).all()
    assert found[1] > 10 * found[0]
