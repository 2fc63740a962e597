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
