"""The terms and the step of energy projection on autoencoders; part of the `Kernels` protocol.

The squared error of L2 autoencoders and VAEs is `Kernels.residual_l2`: `scale` is the weight of an
item, 1 / (2 gamma^2) of a decoder with one variance, `weight` that of a pixel or an element; the
gradient with respect to x itself is minus the cotangent. `gaussian_nll` is the likelihood where the
variances are learned, and have a gradient of their own. Every method raises ShapeError for arrays
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

    def gaussian_nll(
        self,
        x: Float,
        g: Float,
        log_scale: Float,
        scale: Float,
        *,
        cotangent: Float,
        log_scale_cotangent: Float,
        objective: Double,
    ) -> None:
        """Take the negative log-likelihood of x under Gaussians around g, without its constant.

        With r = g - x and s = log_scale, the logarithm of the standard deviation gamma:

            objective           = scale * sum( r^2 exp(-2 s) / 2 + s )
            cotangent           = d objective / d g = scale r exp(-2 s)
            log_scale_cotangent = scale (1 - r^2 exp(-2 s))

        The gradient with respect to x itself is minus the cotangent. Of a decoder with one
        variance, `residual_l2` with a scale of 1 / (2 gamma^2) gives the same but the constant
        log gamma.

        Args:
            log_scale: (B, C, H, W), or (B, 1, H, W) for one shared by the channels, which then
                counts once for each; within +-43, beyond which exp(-2 s) is 0 or infinite.
            cotangent: out, (B, C, H, W).
            log_scale_cotangent: out, the shape of log_scale; summed over the channels where shared.
            objective: out, (B,) float64.
        Source: Dai and Wipf 2019, section 4; seed 002, section 2.1.
        """

    def energy_step(
        self,
        x: Float,
        start: Float,
        pulled: Float,
        lam: Float,
        rate: Float,
        *,
        direct: Float | None,
        mask: Float | None,
        restored: Float | None,
        first: Float | None,
        second: Float | None,
        l1: Double,
        squared_change: Double,
        largest_change: Double,
        step: int = 1,
        direct_factor: float = 1.0,
        weigh_step: bool = False,
        proximal: bool = False,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        lower: float = float("-inf"),
        upper: float = float("inf"),
    ) -> None:
        """Take one step of `x` in place down E = L_r(x) + lam |x - start|_1.

            w = mask * (x - restored)^2                          (factors that are None are 1)
            s = pulled + direct_factor * direct                  (the slope of L_r)
            g = s + lam sign(x - start),  sign(0) = 0
            x <- clip(x - rate w g, lower, upper)

        With Adam (`first`, `second`: its moments, updated in place; 0 before step 1) w g takes the
        place of the gradient:

            first  <- beta1 first + (1 - beta1) w g
            second <- beta2 second + (1 - beta2) (w g)^2,  v = sqrt(second / (1 - beta2^step)) + eps
            x      <- clip(x - rate first / (1 - beta1^step) / v, lower, upper)

        Adam forgets the size of its gradients, and of w with it; with `weigh_step` the moments are
        those of g and w multiplies the step instead. A w of 0 and 1 does the same in either place.

        `proximal`: g = s, and before it is clipped the new x is drawn towards `start` by
        rate w lam (by rate w lam / v with Adam), and stays there where it arrives: the step of
        ISTA, which has no kink to cross. With the plain sign, x swings around `start` by rate w lam
        where it should rest, and the l1 term never reaches 0.

        Args:
            x: the iterate, (B, C, H, W).
            start: the inspected image, the shape of x.
            pulled: J^T dL_r/dx_hat, the gradient through the model, the shape of x.
            lam: weight of the l1 term per item, (B,), >= 0.
            rate: step size per item, (B,), >= 0; an item with rate 0 stays where it is.
            direct: the gradient of L_r by its own x, the shape of x. For `residual_l2` it is the
                cotangent with a `direct_factor` of -1.
            mask: weights >= 0, (B, 1, H, W) or (B, C, H, W); 0 keeps a pixel.
            restored: f(x), the shape of x.
            l1: out, (B,) float64: lam |x - start|_1 before the step, at the x whose L_r was taken.
            squared_change: out, (B,) float64: sum of the squares of what x changed by.
            largest_change: out, (B,) float64, of its magnitudes; NaN where one is.
            step: counts from 1; of Adam alone.
        Source: seed 002, eqs. 4, 5, 7 and 8; Beck and Teboulle 2009 for the proximal step.
        """
