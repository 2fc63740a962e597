"""L_r: how far an image is from its reconstruction, and both gradients of that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from unblemish.bundle.searches import EnergySettings
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
        """L_r (B,) of images x (B, C, h, w) without its `constant`; workspace memory."""
        value, _, _ = self._direct(x, made)
        return value

    def gradient(self, engine: AutoencoderEngine, x: Float, made: Reconstruction) -> Gradient:
        """Value and both parts of d L_r / d x; `made` is of the engine's last pass."""
        value, direct, cotangents = self._direct(x, made)
        return Gradient(value, engine.backward(**cotangents), direct, self.direct_factor)

    @property
    def direct_factor(self) -> float:
        """What the direct part counts: of squared errors it is minus the cotangent."""
        return 1.0 if self.settings.loss == "dssim" else -1.0

    def _direct(self, x: Float, made: Reconstruction) -> tuple[Double, Float, dict[str, Float]]:
        """Value, the gradient with the reconstruction held fixed, and cotangents of the outputs."""
        rows, get = len(x), self.space.array
        cotangent = get("cotangent", x.shape)
        value = get("value", (rows,), np.float64)
        cotangents = {"reconstruction": cotangent}
        scale = np.full(rows, self.scale, np.float32)
        if self.settings.loss == "dssim":
            direct = get("direct", x.shape)
            self.kernels.dssim(
                x, made.image, scale, data_range=self.span,
                dissimilarity=None, direct=direct, cotangent=cotangent, objective=value,
            )  # fmt: skip
            return value, direct, cotangents
        if self.settings.loss != "gaussian" or made.log_scale is None:
            self.kernels.residual_l2(x, made.image, scale, cotangent=cotangent, objective=value)
            return value, cotangent, cotangents
        cotangents["log_scale"] = get("log_scale", made.log_scale.shape)
        self.kernels.gaussian_nll(
            x, made.image, made.log_scale, scale, cotangent=cotangent,
            log_scale_cotangent=cotangents["log_scale"], objective=value,
        )  # fmt: skip
        return value, cotangent, cotangents

    def half_variance(self, made: Reconstruction) -> Float:
        """1 / (2 p) where L_r holds p (x - y)^2, (B, 1, 1, 1) or as the images; p = 1 of DSSIM."""
        if self.settings.loss == "gaussian" and made.log_scale is not None:
            return np.exp(2 * made.log_scale)
        return np.full((len(made.image), 1, 1, 1), 0.5 / self.scale, np.float32)

    @property
    def scale(self) -> float:
        """What squared errors are multiplied with, where one number does for all."""
        gamma = self.settings.gamma
        return 0.5 / gamma**2 if self.settings.loss == "gaussian" and gamma else 1.0

    def constant(self, elements: int) -> float:
        """What L_r holds beside `value`, whatever the image: log gamma of every element."""
        gaussian, gamma = self.settings.loss == "gaussian", self.settings.gamma
        return elements * float(np.log(gamma)) if gaussian and gamma else 0.0


@dataclass(frozen=True)
class Gradient:
    """L_r and its gradient; valid until the next evaluation.

    Args:
        value: (B,). pulled: (B, C, h, w), through the model. direct: the same, times `factor` the
            part where x stands itself.
    """

    value: Double
    pulled: Float
    direct: Float
    factor: float

    def total(self) -> Float:
        """d L_r / d x, (B, C, h, w); a copy."""
        return np.asarray(self.pulled + np.float32(self.factor) * self.direct, np.float32)
