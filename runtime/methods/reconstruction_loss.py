"""L_r: how far an image is from its reconstruction, and both gradients of that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from unblemish.bundle.manifest import EnergySettings
from unblemish.kernels.api import Kernels
from unblemish.runtime.methods.autoencoder import AutoencoderEngine, Reconstruction
from unblemish.runtime.solvers.protocol import Double, Float
from unblemish.runtime.workspace import Workspace


@dataclass
class ReconstructionLoss:
    """L_r of an autoencoder as it was trained, see `EnergySettings.loss`.

    Args:
        span: largest minus smallest model intensity.
    Source: seed 002, eqs. 3 and 4.
    """

    kernels: Kernels
    settings: EnergySettings
    span: float
    space: Workspace = field(default_factory=Workspace)

    def value(self, x: Float, made: Reconstruction) -> Double:
        """L_r (B,) of images x (B, C, h, w); workspace memory."""
        value, _, _ = self._direct(x, made)
        return value

    def gradient(self, engine: AutoencoderEngine, x: Float, made: Reconstruction) -> Gradient:
        """Value and d L_r / d x through both places where x stands; `made` is of the last pass."""
        value, direct, cotangents = self._direct(x, made)
        pulled = engine.backward(**cotangents)
        total = self.space.array("gradient", x.shape)
        np.add(direct, pulled, out=total)
        return Gradient(value, np.asarray(total, np.float32))

    def _direct(self, x: Float, made: Reconstruction) -> tuple[Double, Float, dict[str, Float]]:
        """Value, the gradient with the reconstruction held fixed, and cotangents of the outputs."""
        rows, get = len(x), self.space.array
        cotangent, direct = get("cotangent", x.shape), get("direct", x.shape)
        value = get("value", (rows,), np.float64)
        cotangents = {"reconstruction": cotangent}
        if self.settings.loss == "dssim":
            self.kernels.dssim(
                x, made.image, np.ones(rows, np.float32), data_range=self.span,
                dissimilarity=None, direct=direct, cotangent=cotangent, objective=value,
            )  # fmt: skip
            return value, direct, cotangents
        scale = np.full(rows, self._precision(), np.float32)
        weight = self._weight(made)
        self.kernels.residual_l2(
            x, made.image, scale, cotangent=cotangent, objective=value, weight=weight
        )
        np.negative(cotangent, out=direct)
        if self.settings.loss == "gaussian":
            value += self._normaliser(x, made)
            if made.log_scale is not None:
                share = (x - made.image) * cotangent  # -2 s w r^2 of every element
                cotangents["log_scale"] = np.asarray(1 + share, np.float32)
        return value, direct, cotangents

    def _precision(self) -> float:
        """What a squared error is multiplied with, beside the weight of its element."""
        if self.settings.loss == "l2":
            return 1.0
        gamma = self.settings.gamma
        return 0.5 if gamma is None else 0.5 / gamma**2

    def _weight(self, made: Reconstruction) -> Float | None:
        if made.log_scale is None:
            return None
        weight = self.space.array("weight", made.log_scale.shape)
        np.exp(-2 * made.log_scale, out=weight)
        return np.asarray(weight, np.float32)

    def _normaliser(self, x: Float, made: Reconstruction) -> Double:
        if made.log_scale is not None:
            total: Double = made.log_scale.sum(axis=(1, 2, 3), dtype=np.float64)
            return total
        gamma = self.settings.gamma or 1.0
        return np.full(len(x), x[0].size * np.log(gamma))


@dataclass(frozen=True)
class Gradient:
    """L_r (B,) and its gradient (B, C, h, w); valid until the next evaluation."""

    value: Double
    gradient: Float
