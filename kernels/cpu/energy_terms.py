"""`EnergyTerms` by the compiled module."""

from __future__ import annotations

from unblemish.kernels import _cpu
from unblemish.kernels import energy_checks as checks
from unblemish.kernels.energy_terms import Double, Float


class CpuEnergyTerms:
    """See `EnergyTerms`. Part of `CpuKernels`, which makes the engine."""

    _engine: _cpu.Engine

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
        """See `EnergyTerms`."""
        outputs = (dissimilarity, direct, cotangent, objective)
        try:
            self._engine.dssim(x, g, scale, data_range, window, sigma, *outputs)
        except (TypeError, ValueError):
            checks.dssim(
                x,
                g,
                scale,
                data_range=data_range,
                dissimilarity=dissimilarity,
                direct=direct,
                cotangent=cotangent,
                objective=objective,
                window=window,
                sigma=sigma,
            )
            raise

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
        """See `EnergyTerms`."""
        try:
            self._engine.gaussian_nll(
                x, g, log_scale, scale, cotangent, log_scale_cotangent, objective
            )
        except (TypeError, ValueError):
            checks.gaussian_nll(
                x,
                g,
                log_scale,
                scale,
                cotangent=cotangent,
                log_scale_cotangent=log_scale_cotangent,
                objective=objective,
            )
            raise

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
        """See `EnergyTerms`."""
        try:
            self._engine.energy_step(
                x,
                start,
                pulled,
                lam,
                rate,
                direct,
                direct_factor,
                mask,
                restored,
                first,
                second,
                step,
                beta1,
                beta2,
                eps,
                weigh_step,
                proximal,
                lower,
                upper,
                l1,
                squared_change,
                largest_change,
            )
        except (TypeError, ValueError):
            checks.energy_step(
                x,
                start,
                pulled,
                lam,
                rate,
                direct=direct,
                mask=mask,
                restored=restored,
                first=first,
                second=second,
                l1=l1,
                squared_change=squared_change,
                largest_change=largest_change,
                step=step,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                lower=lower,
                upper=upper,
            )
            raise
