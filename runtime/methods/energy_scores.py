"""Anomaly maps from one pass and its gradients: what the search is compared with."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from unblemish.errors import ConfigError
from unblemish.runtime.methods.autoencoder import AutoencoderEngine
from unblemish.runtime.methods.reconstruction_loss import ReconstructionLoss
from unblemish.runtime.solvers.protocol import Float

ScoreKind = Literal["error", "gradient", "gradient-error", "kl", "kl-error"]
SCORE_KINDS: tuple[str, ...] = get_args(ScoreKind)


def score_maps(
    engine: AutoencoderEngine, loss: ReconstructionLoss, x: Float, kind: ScoreKind
) -> Float:
    """Maps (B, 1, h, w) of images x (B, C, h, w), channels averaged.

    error: (x - f(x))^2. gradient: |d L / d x| of the training loss L, of a VAE L_r and the code's
    divergence KL(q(z | x) || N(0, I)). kl: |d KL / d x|. The products with the error are taken
    element by element.
    Raises: ConfigError where the divergence is asked for and the model has none.
    Source: seed 002, table 2.
    """
    made = engine.forward(x)
    if kind.startswith("kl") and made.mean is None:
        raise ConfigError(
            f"refine='{kind}' needs the divergence of a VAE's code; this bundle holds a plain "
            "autoencoder. Use error, gradient or gradient-error."
        )
    error = np.square(x - made.image)
    if kind == "error":
        return _averaged(error)
    total = np.zeros_like(x)
    if kind.startswith("gradient"):
        total += loss.gradient(engine, x, made).total()
    if made.mean is not None and made.log_variance is not None:
        total += engine.backward(**divergence_slopes(made.mean, made.log_variance))
    size = np.abs(total)
    return _averaged(size * error if kind.endswith("error") else size)


def divergence_slopes(mean: Float, log_variance: Float) -> dict[str, Float]:
    """Derivatives of sum (mean^2 + exp(lv) - 1 - lv) / 2 by mean and log variance lv."""
    slope = np.float32(0.5) * np.expm1(log_variance)
    return {"mean": np.array(mean), "log_variance": np.asarray(slope, np.float32)}


def _averaged(values: Float) -> Float:
    return np.asarray(values.mean(axis=1, keepdims=True), np.float32)
