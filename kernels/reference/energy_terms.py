"""`EnergyTerms` by the float64 functions of this package, rounded once into the outputs."""

from __future__ import annotations

import numpy as np

from unblemish.kernels import energy_checks as checks
from unblemish.kernels.energy_terms import Double, Float
from unblemish.kernels.reference.dssim import dssim
from unblemish.kernels.reference.energy_step import Rule, energy_step
from unblemish.kernels.reference.gaussian_nll import gaussian_nll
from unblemish.kernels.reference.norms import norms


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
        checks.gaussian_nll(
            x,
            g,
            log_scale,
            scale,
            cotangent=cotangent,
            log_scale_cotangent=log_scale_cotangent,
            objective=objective,
        )
        cotangent[...], log_scale_cotangent[...], objective[...] = gaussian_nll(
            x, g, log_scale, scale
        )

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
        adam = None if first is None or second is None else (first, second)
        rule = Rule(step, beta1, beta2, eps, weigh_step, proximal, lower, upper)
        slope = pulled if direct is None else pulled + direct_factor * direct.astype(np.float64)
        moved, moments, l1[...] = energy_step(
            x, start, slope, lam, rate, mask=mask, restored=restored, moments=adam, rule=rule
        )
        change = moved.astype(np.float32) - x.astype(np.float64)
        squared_change[...], largest_change[...] = norms(change)
        x[...] = moved
        if adam is not None:
            for moment, new in zip(adam, moments, strict=True):
                moment[...] = new
