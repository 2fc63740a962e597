"""`EnergyTerms` by the float64 functions of this package, rounded once into the outputs."""

from __future__ import annotations

from unblemish.kernels import energy_checks as checks
from unblemish.kernels.energy_terms import Double, Float
from unblemish.kernels.reference.dssim import dssim


class ReferenceEnergyTerms:
    """See `EnergyTerms`."""

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
        found = dssim(x, g, scale, data_range=data_range, window=window, sigma=sigma)
        for output, result in zip(outputs, found, strict=True):
            if output is not None:
                output[...] = result
