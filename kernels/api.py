"""The `Kernels` protocol: everything between the network passes, on one device.

All image arrays are float32, (batch, channels, height, width) = (B, C, H, W), C-contiguous, with
any B, C, H, W >= 1. Outputs are given by the caller (`out` arrays, keyword only), are written in
place and share memory with no other argument; the compiled kernels allocate nothing. Per-item
scalars are float32 arrays of length B. Reductions are taken and returned in float64; those of the
compiled kernels do not depend on the thread count.

Every method raises ShapeError for a wrong shape, dtype, memory order, a read-only output or shared
memory (an input that is not C-contiguous is refused: copying it would hide an allocation in the
loop), and ConfigError for a setting out of range. NaN and infinity are no errors: they pass to the
elements they touch and to the objective of their item.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.energy_terms import EnergyTerms
from unblemish.kernels.feature_terms import FeatureTerms
from unblemish.kernels.image_terms import ImageTerms

Float = NDArray[np.float32]
Double = NDArray[np.float64]


class Kernels(ImageTerms, FeatureTerms, EnergyTerms, Protocol):
    """The operations a solver needs between two engine calls.

    Implemented by `ReferenceKernels` (float64 NumPy inside, the oracle), `CpuKernels` (compiled
    C++), `NumpyKernels` (where no compiler was), `CudaKernels` (a GPU, where arrays may be on the
    device as well).
    """

    name: str

    def rgi_closed_form(
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
        """Minimise the RGI objective over the mask, and differentiate it with respect to the image.

        With r = g - x and r2 the squared residual of a mask element (summed over the channels when
        the mask is shared), per item b:

            mask      = max(0, 1 - lam / (2 r2))                           (0 where r2 = 0)
            objective = scale * sum( r2 if 2 r2 < lam else lam - lam^2 / (4 r2) )
            cotangent = d objective / d g = scale * 2 (1 - mask)^2 (g - x)

        Args:
            x: inspected image, (B, C, H, W).
            g: generated image, (B, C, H, W).
            lam: sparsity weight per item, (B,), > 0, unit: squared intensity.
            scale: factor of objective and cotangent per item, (B,); 1 for sums, 1/(C H W) for
                means.
            mask: out, (B, 1, H, W) for a mask shared by the channels, (B, C, H, W) per element.
            cotangent: out, (B, C, H, W).
            objective: out, (B,) float64, the profile loss; NaN where a residual of the item is NaN
                or infinite (its limit, lam, would hide that).
        Source: seed 000, eq. 3, section 3.3 and eq. 6 of appendix B.
        """

    def rgi_gradient(
        self,
        x: Float,
        g: Float,
        mask: Float,
        lam: Float,
        scale: Float,
        *,
        cotangent: Float,
        mask_gradient: Float,
        objective: Double,
    ) -> None:
        """Differentiate the RGI objective with respect to image and mask, the mask being free.

            objective     = scale * sum( ((1 - mask) r)^2 ) + scale * lam * sum |mask|
            cotangent     = scale * 2 (1 - mask)^2 r
            mask_gradient = scale * ( lam * sign(mask) - 2 (1 - mask) r2 )

        r2 sums over the channels where `mask` is (B, 1, H, W). Shapes as in `rgi_closed_form`.
        Source: seed 000, eq. 3 (the paper's joint descent on z and M).
        """

    def residual_l2(
        self,
        x: Float,
        g: Float,
        scale: Float,
        *,
        cotangent: Float,
        objective: Double,
        weight: Float | None = None,
    ) -> None:
        """objective = scale * sum w (g - x)^2 and its cotangent 2 scale w (g - x).

        `weight`: None (w = 1), (B, 1, H, W) or (B, C, H, W), >= 0.
        """

    def residual_l1(
        self,
        x: Float,
        g: Float,
        scale: Float,
        *,
        cotangent: Float,
        objective: Double,
        weight: Float | None = None,
    ) -> None:
        """objective = scale * sum w |g - x| and its cotangent scale w sign(g - x), sign(0) = 0."""

    def adam(
        self,
        p: Float,
        grad: Float,
        m: Float,
        v: Float,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        lower: float = float("-inf"),
        upper: float = float("inf"),
    ) -> None:
        """One Adam update of `p` in place (any shape), then projection on the box [lower, upper].

        `step` counts from 1. m, v are updated in place. Matches torch.optim.Adam without weight
        decay.
        """

    def project_ball(self, p: Float, *, centre: Float | None, radius: Float) -> None:
        """Project every row of `p` (B, n) in place on an l2 ball.

        argmin_q ||q - p|| with ||q - c|| <= radius[b]: p inside, c + radius (p - c) / ||p - c||
        outside. `centre`: (B, n), None for 0. `radius`: (B,), >= 0. A row with NaN turns NaN.
        """

    def norms(self, x: Float, *, squared: Double, largest: Double) -> None:
        """Per item of `x` (B, ...): sum of squares and largest magnitude; NaN where one is NaN."""

    def all_finite(self, x: Float) -> bool:
        """Whether every element of `x` (any shape) is finite."""
