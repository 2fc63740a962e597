"""The terms and the step of energy projection on autoencoders; part of the `Kernels` protocol.

The squared error of L2 autoencoders and VAEs is `Kernels.residual_l2`: `scale` is the weight of an
item, 1 / (2 gamma^2) of a decoder with one variance, `weight` that of a pixel or an element; the
gradient with respect to x itself is minus the cotangent. Every method raises ShapeError for arrays
that do not fit and ConfigError for settings out of range; see `energy_checks`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Double = NDArray[np.float64]


class EnergyTerms(Protocol):
    """What energy projection needs of the kernels."""

    def dssim(
        self,
        x: Float,
        g: Float,
        scale: Float,
        *,
        data_range: float,
        dissimilarity: Float | None,
        direct: Float | None,
        cotangent: Float | None,
        objective: Double,
        window: int = 11,
        sigma: float = 1.5,
    ) -> None:
        """Structural dissimilarity of two images, with its map and both gradients.

        With mu, var and cov taken over a normalised Gaussian window around each pixel of a channel,
        C1 = (0.01 data_range)^2 and C2 = (0.03 data_range)^2:

            SSIM          = (2 mu_x mu_g + C1) (2 cov_xg + C2)
                            / ((mu_x^2 + mu_g^2 + C1) (var_x + var_g + C2))
            dissimilarity = mean over the channels of (1 - SSIM) / 2
            objective     = scale * sum over the pixels of dissimilarity
            direct        = d objective / d x,   cotangent = d objective / d g

        Images are continued by their mirror image, the border pixel repeated (c b a | a b c), as
        often as the window asks for, so that any size will do. Where scikit-image takes the size
        (both sides >= window) and window is 2 int(3.5 sigma + 0.5) + 1, SSIM is the map of its
        structural_similarity(full=True, gaussian_weights=True, use_sample_covariance=False,
        sigma=sigma), borders included. Its mean leaves out window // 2 pixels at each border; our
        sum takes all. Differences are squared in float32: they, and data_range, must lie between
        about 1e-15 and 1e15. NaN and infinity reach the map within window // 2 pixels, and the
        gradients within twice that.

        Args:
            x: inspected image, (B, C, H, W).
            g: reconstruction, (B, C, H, W).
            scale: factor of objective and gradients per item, (B,).
            data_range: largest minus smallest intensity, > 0.
            dissimilarity: out, (B, 1, H, W), in [0, 1]; None where it is not asked for.
            direct: out, (B, C, H, W), or None, as `cotangent`; half of the work is saved where
                neither is asked for.
            objective: out, (B,) float64.
            window: side of the window, odd, 1 to 511 pixels.
            sigma: standard deviation of the window, pixels, > 0.
        Source: Wang et al. 2004, eqs. 6 and 13; as a loss Bergmann et al. 2018; seed 002, 4.1.
        """
