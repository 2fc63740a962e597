"""The oracle: every operation in float64 NumPy, one file each, written to be read."""

from __future__ import annotations

import numpy as np

from unblemish.kernels import checks
from unblemish.kernels.api import Double, Float
from unblemish.kernels.reference.adam import adam
from unblemish.kernels.reference.energy_terms import ReferenceEnergyTerms
from unblemish.kernels.reference.feature_terms import ReferenceFeatureTerms
from unblemish.kernels.reference.image_terms import ReferenceImageTerms
from unblemish.kernels.reference.norms import all_finite, norms
from unblemish.kernels.reference.project_ball import project_ball
from unblemish.kernels.reference.residual import residual_l1, residual_l2
from unblemish.kernels.reference.rgi_closed_form import rgi_closed_form
from unblemish.kernels.reference.rgi_gradient import rgi_gradient

__all__ = [
    "ReferenceKernels",
    "adam",
    "all_finite",
    "norms",
    "project_ball",
    "residual_l1",
    "residual_l2",
    "rgi_closed_form",
    "rgi_gradient",
]


class ReferenceKernels(ReferenceImageTerms, ReferenceFeatureTerms, ReferenceEnergyTerms):
    """`Kernels` by the float64 functions of this package, rounded once into the outputs.

    Unlike the other implementations it allocates; see `Kernels` for every method.
    """

    name = "reference"

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
        checks.rgi_closed_form(
            x, g, lam, scale, mask=mask, cotangent=cotangent, objective=objective
        )
        mask[...], cotangent[...], objective[...] = rgi_closed_form(
            x, g, lam, scale, shared=mask.shape[1] == 1
        )

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
        checks.rgi_gradient(
            x,
            g,
            mask,
            lam,
            scale,
            cotangent=cotangent,
            mask_gradient=mask_gradient,
            objective=objective,
        )
        with np.errstate(over="ignore"):
            cotangent[...], mask_gradient[...], objective[...] = rgi_gradient(
                x, g, mask, lam, scale
            )

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
        checks.residual(
            "residual_l2", x, g, scale, cotangent=cotangent, objective=objective, weight=weight
        )
        with np.errstate(over="ignore"):
            cotangent[...], objective[...] = residual_l2(x, g, scale, weight)

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
        checks.residual(
            "residual_l1", x, g, scale, cotangent=cotangent, objective=objective, weight=weight
        )
        with np.errstate(over="ignore"):
            cotangent[...], objective[...] = residual_l1(x, g, scale, weight)

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
        checks.adam(p, grad, m, v, step=step, lower=lower, upper=upper)
        with np.errstate(over="ignore"):
            p[...], m[...], v[...] = adam(
                p,
                grad,
                m,
                v,
                step=step,
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                lower=lower,
                upper=upper,
            )

    def project_ball(self, p: Float, *, centre: Float | None, radius: Float) -> None:
        checks.project_ball(p, centre=centre, radius=radius)
        p[...] = project_ball(p, centre, radius)

    def norms(self, x: Float, *, squared: Double, largest: Double) -> None:
        checks.norms(x, squared=squared, largest=largest)
        squared[...], largest[...] = norms(x)

    def all_finite(self, x: Float) -> bool:
        checks.all_finite(x)
        return all_finite(x)
