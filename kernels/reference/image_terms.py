"""`ImageTerms` by the float64 functions of this package, rounded once into the outputs."""

from __future__ import annotations

from unblemish.kernels import image_checks as checks
from unblemish.kernels.image_terms import Byte, Double, Float, Half
from unblemish.kernels.reference.adan import adan
from unblemish.kernels.reference.log_penalty import log_penalty
from unblemish.kernels.reference.mixture_prior import mixture_prior
from unblemish.kernels.reference.sharing import (
    share_gradient,
    share_gradient_direct,
    sharing_weights,
)
from unblemish.kernels.reference.total_variation import total_variation


class ReferenceImageTerms:
    """See `ImageTerms`. Pixel by pixel where that is plainest: slow."""

    def total_variation(self, n: Float, weight: Float, *, gradient: Float, value: Double) -> None:
        """See `ImageTerms`."""
        checks.total_variation(n, weight, gradient=gradient, value=value)
        slope, term = total_variation(n, weight)
        gradient[...] = gradient + slope
        value += term

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
        """See `ImageTerms`."""
        checks.log_penalty(x, n, weight, free, epsilon=epsilon, gradient=gradient, value=value)
        slope, term = log_penalty(x, n, weight, free, epsilon=epsilon)
        gradient[...] = gradient + slope
        value += term

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
        """See `ImageTerms`."""
        checks.mixture_prior(n, means, precisions, weight, free, gradient=gradient, value=value)
        slope, term = mixture_prior(n, means, precisions, weight, free)
        gradient[...] = gradient + slope
        value += term

    def sharing_weights(
        self, x: Float, *, radius: int, sigma_space: float, sigma_colour: float, weights: Half
    ) -> None:
        """See `ImageTerms`."""
        checks.sharing_weights(
            x, radius=radius, sigma_space=sigma_space, sigma_colour=sigma_colour, weights=weights
        )
        weights[...] = sharing_weights(
            x, radius=radius, sigma_space=sigma_space, sigma_colour=sigma_colour
        )

    def share_gradient(self, gradient: Float, weights: Half, *, radius: int, shared: Float) -> None:
        """See `ImageTerms`."""
        checks.share_gradient(gradient, weights, radius=radius, shared=shared)
        shared[...] = share_gradient(gradient, weights, radius=radius)

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
        """See `ImageTerms`."""
        checks.share_gradient_direct(
            gradient,
            x,
            radius=radius,
            sigma_space=sigma_space,
            sigma_colour=sigma_colour,
            shared=shared,
        )
        shared[...] = share_gradient_direct(
            gradient, x, radius=radius, sigma_space=sigma_space, sigma_colour=sigma_colour
        )

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
        """See `ImageTerms`."""
        moments = (first, slope, second, previous)
        checks.adan(
            n,
            x,
            g,
            *moments,
            free,
            step=step,
            rate=rate,
            clip=clip,
            lower=lower,
            upper=upper,
            floor=floor,
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            eps=eps,
        )
        n[...], found = adan(
            n,
            x,
            g,
            moments,
            free,
            step=step,
            rate=rate,
            clip=clip,
            lower=lower,
            upper=upper,
            floor=floor,
            betas=(beta1, beta2, beta3),
            eps=eps,
        )
        for moment, new in zip(moments, found, strict=True):
            moment[...] = new
