"""The kernels in float32 NumPy: what runs where the compiled ones could not be built.

The outputs serve as scratch space, so that few temporaries are made; sums are taken in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels import checks
from unblemish.kernels.api import Double, Float
from unblemish.kernels.numpy_energy_terms import NumpyEnergyTerms
from unblemish.kernels.numpy_feature_terms import NumpyFeatureTerms
from unblemish.kernels.numpy_image_terms import NumpyImageTerms


class NumpyKernels(NumpyImageTerms, NumpyFeatureTerms, NumpyEnergyTerms):
    """`Kernels` in vectorised NumPy: several passes over memory and one thread. See `Kernels`."""

    name = "numpy"

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
        weight, r = _per_pixel(lam), cotangent
        with np.errstate(all="ignore"):
            np.subtract(g, x, out=r)
            r2 = _squares(r, mask)
            inside = r2 + r2 <= weight
            keep = np.where(inside, np.float32(1), weight / (r2 + r2))
            loss = np.where(inside, r2, weight * (1 - np.float32(0.5) * keep))
            objective[...] = scale * (_sum(loss) + _sum(0 * r))
            np.subtract(np.float32(1), keep, out=mask)  # r2 ends here
            cotangent *= keep
            cotangent *= keep
            cotangent *= 2 * _per_pixel(scale)

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
        r = cotangent
        with np.errstate(all="ignore"):
            np.subtract(g, x, out=r)
            r2 = _squares(r, mask_gradient)
            keep = 1 - mask
            slope = _per_pixel(lam) * np.sign(mask) - 2 * (keep * r2)
            np.multiply(_per_pixel(scale), slope, out=mask_gradient)
            cotangent *= keep
            objective[...] = scale * (_sum_squares(cotangent) + lam * _sum(np.abs(mask)))
            cotangent *= keep
            cotangent *= 2 * _per_pixel(scale)

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
        with np.errstate(all="ignore"):
            np.subtract(g, x, out=cotangent)
            objective[...] = scale * _sum_squares(cotangent, weight)
            if weight is not None:
                cotangent *= weight
            cotangent *= 2 * _per_pixel(scale)

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
        with np.errstate(all="ignore"):
            np.subtract(g, x, out=cotangent)
            magnitude = np.abs(cotangent)
            objective[...] = scale * _sum(magnitude if weight is None else magnitude * weight)
            np.sign(cotangent, out=cotangent)
            if weight is not None:
                cotangent *= weight
            cotangent *= _per_pixel(scale)

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
        with np.errstate(all="ignore"):
            m += np.float32(1 - beta1) * (grad - m)
            v *= np.float32(beta2)
            v += np.float32(1 - beta2) * (grad * grad)
            root = np.sqrt(v)
            root *= np.float32((1 - beta2**step) ** -0.5)
            root += np.float32(eps)
            np.divide(m, root, out=root)
            root *= np.float32(lr / (1 - beta1**step))
            p -= root
            if lower > float("-inf") or upper < float("inf"):
                np.clip(p, np.float32(lower), np.float32(upper), out=p)

    def project_ball(self, p: Float, *, centre: Float | None, radius: Float) -> None:
        checks.project_ball(p, centre=centre, radius=radius)
        with np.errstate(all="ignore"):
            offset = (
                p.astype(np.float64) if centre is None else np.subtract(p, centre, dtype=np.float64)
            )
            distance = np.sqrt(np.einsum("bn,bn->b", offset, offset))
            outside = np.flatnonzero(~(distance <= radius))
            moved = (radius[outside] / distance[outside])[:, None] * offset[outside]
            p[outside] = moved if centre is None else moved + centre[outside]

    def norms(self, x: Float, *, squared: Double, largest: Double) -> None:
        checks.norms(x, squared=squared, largest=largest)
        with np.errstate(all="ignore"):
            squared[...] = _sum_squares(x)
            np.max(np.abs(x.reshape(x.shape[0], -1)), axis=1, out=largest)

    def all_finite(self, x: Float) -> bool:
        checks.all_finite(x)
        return bool(np.isfinite(x).all())


def _per_pixel(per_item: Float) -> Float:
    return per_item.reshape(-1, 1, 1, 1)


def _squares(r: Float, mask: Float) -> Float:
    """Squared residual per mask element, in the memory of `mask`."""
    if mask.shape == r.shape:
        return np.multiply(r, r, out=mask)
    return np.einsum("bchw,bchw->bhw", r, r, out=mask[:, 0])[:, None]


def _sum(values: NDArray[Any]) -> Double:
    total: Double = np.sum(values.reshape(values.shape[0], -1), axis=1, dtype=np.float64)
    return total


def _sum_squares(values: Float, weight: Float | None = None) -> Double:
    # In float64 from the square on: the square of a large float32 is not a float32.
    wide = values.astype(np.float64)
    wide *= wide
    if weight is not None:
        wide *= weight
    return _sum(wide)
