"""Reconstruction losses on images, the best mask already put in: value, cotangent and mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unblemish.errors import ConfigError
from unblemish.kernels.api import Kernels
from unblemish.runtime.solvers.protocol import Double, Float


class ImageLoss(Protocol):
    """A loss between inspected images x and generated images g."""

    def __call__(
        self,
        x: Float,
        g: Float,
        lam: Float,
        scale: Float,
        *,
        mask: Float,
        cotangent: Float,
        objective: Double,
    ) -> None:
        """Write mask (B, 1 or C, h, w), cotangent (B, C, h, w) and objective (B,)."""


@dataclass(frozen=True)
class ProfileL2:
    """RGI with l2: M = (1 - lam / (2 r^2))_+ put into eq. 3. Source: seed 000, section 3.3."""

    kernels: Kernels

    def __call__(
        self,
        x: Float,
        g: Float,
        lam: Float,
        scale: Float,
        *,
        mask: Float,
        cotangent: Float,
        objective: Double,
    ) -> None:
        """See `ImageLoss`."""
        self.kernels.rgi_closed_form(
            x, g, lam, scale, mask=mask, cotangent=cotangent, objective=objective
        )


@dataclass(frozen=True)
class ProfileL1:
    """RGI with l1: eq. 3 is linear in M, so M is 0 or 1 and the profile is min(|r|, lam).

    |r| sums over the channels where the mask is shared. Source: seed 000, eq. 3.
    """

    kernels: Kernels

    def __call__(
        self,
        x: Float,
        g: Float,
        lam: Float,
        scale: Float,
        *,
        mask: Float,
        cotangent: Float,
        objective: Double,
    ) -> None:
        """See `ImageLoss`."""
        np.abs(np.subtract(g, x, out=cotangent), out=cotangent)
        size = cotangent.sum(axis=1, keepdims=True) if mask.shape[1] == 1 else cotangent
        np.less_equal(size, lam[:, None, None, None], out=mask, casting="unsafe")
        self.kernels.residual_l1(x, g, scale, cotangent=cotangent, objective=objective, weight=mask)
        np.subtract(1.0, mask, out=mask)
        objective += scale.astype(np.float64) * lam * mask.sum(axis=(1, 2, 3), dtype=np.float64)


@dataclass(frozen=True)
class Plain:
    """No mask at all: l2 or l1 inversion (AnoGAN's residual). Source: seed 000, eq. 1."""

    kernels: Kernels
    norm: str

    def __call__(
        self,
        x: Float,
        g: Float,
        lam: Float,
        scale: Float,
        *,
        mask: Float,
        cotangent: Float,
        objective: Double,
    ) -> None:
        """See `ImageLoss`; the mask is zero."""
        mask[...] = 0.0
        residual = self.kernels.residual_l2 if self.norm == "l2" else self.kernels.residual_l1
        residual(x, g, scale, cotangent=cotangent, objective=objective)


def image_loss(kernels: Kernels, norm: str, *, masked: bool) -> ImageLoss:
    """The loss of a norm, 'l2' or 'l1', with RGI's mask or without any."""
    if norm not in ("l2", "l1"):
        raise ConfigError(f"loss must be 'l2' or 'l1'; got '{norm}'.")
    if not masked:
        return Plain(kernels, norm)
    return ProfileL2(kernels) if norm == "l2" else ProfileL1(kernels)
