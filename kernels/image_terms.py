"""The terms and the update of F2PAD between the network passes; part of the `Kernels` protocol.

Images n, x and gradients are (B, C, H, W), `free` is (B, 1, H, W) uint8 and selects the pixels that
count, `weight` is (B,) float32. `gradient` and `value` are added to, so that terms accumulate.

NaN shows in what it touches: in the value of its item, and in the gradient of its pixel and of the
neighbours that meet it; a pixel that is not free keeps its n and its gradient. Differences are
squared in float32: they must lie between about 1e-19 and 1e19, smaller ones count as 0. Every
method raises ShapeError for arrays that do not fit and ConfigError for settings out of range; see
`image_checks`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Half = NDArray[np.float16]
Byte = NDArray[np.uint8]


class ImageTerms(Protocol):
    """What F2PAD needs of the kernels."""

    def total_variation(self, n: Float, weight: Float, *, gradient: Float, value: Double) -> None:
        """Add weight * sum ||n[i+1, j] - n[i, j]||_2 + ||n[i, j+1] - n[i, j]||_2.

        Norms over the channels; the derivative is 0 where one is 0. Source: seed 003, eq. 11.
        """

    def log_penalty(
        self,
        x: Float,
        n: Float,
        weight: Float,
        free: Byte,
        *,
        epsilon: float,
        gradient: Float,
        value: Double,
    ) -> None:
        """Add weight * sum log(sqrt(||a||^2 + epsilon) + ||a||) with a = x - n, by n.

        Its derivative by ||a|| is 1 / sqrt(||a||^2 + epsilon); 0 where a is 0. Source: eq. 8.
        """

    def mixture_prior(
        self,
        n: Float,
        means: Float,
        precisions: Float,
        weight: Float,
        free: Byte,
        *,
        gradient: Float,
        value: Double,
    ) -> None:
        """Add weight * sum min_q (n - mu_q)^T P_q (n - mu_q), of the nearest q alone.

        means: (Q, C). precisions: (Q, C, C), symmetric. Source: eq. 10.
        """

    def sharing_weights(
        self, x: Float, *, radius: int, sigma_space: float, sigma_colour: float, weights: Half
    ) -> None:
        """Write w ~ exp(-d^2 / sigma_space) exp(-||x_q - x_p||^2 / sigma_colour), eq. 14.

        weights: out, (B, (2 radius + 1)^2, H, W), neighbours row by row; they sum to 1 over the
        neighbours inside the image, and are 0 outside. Of neighbours so far away that
        exp(-d^2 / sigma_space) < 2^-25 the weight may be 0: it would round to it.
        """

    def share_gradient(self, gradient: Float, weights: Half, *, radius: int, shared: Float) -> None:
        """Write shared_p = sum_q w_pq gradient_q, eq. 13."""

    def share_gradient_direct(
        self,
        gradient: Float,
        x: Float,
        *,
        radius: int,
        sigma_space: float,
        sigma_colour: float,
        shared: Float,
    ) -> None:
        """As `share_gradient`, the weights computed on the way and not rounded to half precision.

        A weight may lack 1e-6 of its size; those of neighbours beyond 2^-25 may be 0 (see above).
        """

    def adan(
        self,
        n: Float,
        x: Float,
        g: Float,
        first: Float,
        slope: Float,
        second: Float,
        previous: Float,
        free: Byte,
        *,
        step: int,
        rate: Float,
        clip: float,
        lower: float,
        upper: float,
        floor: float,
        beta1: float = 0.98,
        beta2: float = 0.92,
        beta3: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        """One Adan update of n along g in place, on free pixels.

            g        <- clip(g, -clip, clip);  d = g - previous  (0 in step 1)
            first    <- beta1 first + (1 - beta1) g
            slope    <- beta2 slope + (1 - beta2) d
            second   <- beta3 second + (1 - beta3) (g + beta2 d)^2
            n        <- clip(n - rate / max(|x - n|, floor) * u, lower, upper)
            u         = (first / (1 - beta1^t) + beta2 slope / (1 - beta2^t))
                        / (sqrt(second / (1 - beta3^t)) + eps)

        g itself is left as it is. Source: seed 003, eq. 15; Xie et al., 'Adan', 2024, algorithm 1.
        """
