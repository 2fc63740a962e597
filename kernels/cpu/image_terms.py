"""`ImageTerms` by the compiled module."""

from __future__ import annotations

from unblemish.kernels import _cpu
from unblemish.kernels import image_checks as checks
from unblemish.kernels.image_terms import Byte, Double, Float, Half


class CpuImageTerms:
    """See `ImageTerms`. Part of `CpuKernels`, which makes the engine."""

    _engine: _cpu.Engine

    def total_variation(self, n: Float, weight: Float, *, gradient: Float, value: Double) -> None:
        """See `ImageTerms`."""
        try:
            self._engine.total_variation(n, weight, gradient, value)
        except (TypeError, ValueError):
            checks.total_variation(n, weight, gradient=gradient, value=value)
            raise

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
        try:
            self._engine.log_penalty(x, n, weight, free, epsilon, gradient, value)
        except (TypeError, ValueError):
            checks.log_penalty(x, n, weight, free, epsilon=epsilon, gradient=gradient, value=value)
            raise

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
        try:
            self._engine.mixture_prior(n, means, precisions, weight, free, gradient, value)
        except (TypeError, ValueError):
            checks.mixture_prior(n, means, precisions, weight, free, gradient=gradient, value=value)
            raise

    def sharing_weights(
        self, x: Float, *, radius: int, sigma_space: float, sigma_colour: float, weights: Half
    ) -> None:
        """See `ImageTerms`."""
        try:
            self._engine.sharing_weights(x, radius, sigma_space, sigma_colour, weights)
        except (TypeError, ValueError):
            checks.sharing_weights(
                x,
                radius=radius,
                sigma_space=sigma_space,
                sigma_colour=sigma_colour,
                weights=weights,
            )
            raise

    def share_gradient(self, gradient: Float, weights: Half, *, radius: int, shared: Float) -> None:
        """See `ImageTerms`."""
        try:
            self._engine.share_gradient(gradient, weights, radius, shared)
        except (TypeError, ValueError):
            checks.share_gradient(gradient, weights, radius=radius, shared=shared)
            raise

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
        try:
            self._engine.share_gradient_direct(
                gradient, x, radius, sigma_space, sigma_colour, shared
            )
        except (TypeError, ValueError):
            checks.share_gradient_direct(
                gradient,
                x,
                radius=radius,
                sigma_space=sigma_space,
                sigma_colour=sigma_colour,
                shared=shared,
            )
            raise

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
        arrays = (n, x, g, first, slope, second, previous, free)
        try:
            self._engine.adan(
                *arrays, step, rate, clip, lower, upper, floor, beta1, beta2, beta3, eps
            )
        except (TypeError, ValueError):
            checks.adan(
                *arrays,
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
            raise
