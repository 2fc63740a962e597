"""How far each latent reaches: the diagonal of the Hessian, known before any image."""

from __future__ import annotations

import numpy as np

from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.solvers.protocol import Double, Float

_FLOOR = 1e-3  # of the mean: a latent that moves nothing must not be given endless steps


_SAMPLES = 16


def typical_lengths(engine: GeneratorEngine, size: int) -> Double:
    """`latent_lengths` (size,) of standard normal latents."""
    latents = np.random.default_rng(1).standard_normal((_SAMPLES, size))
    return latent_lengths(engine, latents.astype(np.float32))


def latent_lengths(engine: GeneratorEngine, latents: Float, *, seed: int = 0) -> Double:
    """Typical length of each latent for the mean squared error, 1 / sqrt(h).

    With J the Jacobian of the N image elements, the Gauss-Newton Hessian of the mean squared error
    has the diagonal h_i = 2/N sum_k J_ki^2. For random signs v, E (J' v)_i^2 = sum_k J_ki^2, so one
    pass back per latent vector estimates all h_i at once; the mean is over the vectors and signs.

    Args:
        latents: (S, n), typical latents; one pass forward and back each.
    Returns: (n,) float64.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(latents.shape[1])
    for z in latents:
        image = engine.forward(np.ascontiguousarray(z[None]))
        signs = rng.choice(np.array([-1.0, 1.0], np.float32), size=image.shape)
        gradient, _ = engine.backward(signs)
        total += 2.0 / image.size * np.square(gradient[0], dtype=np.float64)
    h = np.nan_to_num(total / len(latents), posinf=0.0)
    mean = float(h.mean())
    lengths: Double = np.sqrt(1.0 / (h + _FLOOR * mean)) if mean > 0 else np.ones(len(h))
    return lengths
