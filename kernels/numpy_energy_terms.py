"""The terms of energy projection in NumPy; see `EnergyTerms`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels import energy_checks as checks
from unblemish.kernels.energy_terms import Double, Float


class NumpyEnergyTerms:
    """`EnergyTerms`, several passes over memory each."""

    @np.errstate(all="ignore")
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
        """See `EnergyTerms`; the derivation is in include/unblemish/dssim.hpp."""
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
        weights = _gaussian(window, sigma)
        anchor = _anchor(x, g, data_range)
        d, u = x - g, np.float32(0.5) * (x + g) - anchor
        mean_d, mean_u, mean_dd, mean_uu = (_blur(v, weights) for v in (d, u, d * d, u * u))
        square, level = mean_d * mean_d, mean_u + anchor
        # NaN passes np.maximum.
        var_d = np.maximum(mean_dd - square, np.float32(0))
        var_u = np.maximum(mean_uu - mean_u * mean_u, np.float32(0))
        inverse_b1 = 1 / (2 * level * level + square / 2 + np.float32(1e-4 * data_range**2))
        inverse_b2 = 1 / (2 * var_u + var_d / 2 + np.float32(9e-4 * data_range**2))
        a, b = square * inverse_b1, var_d * inverse_b2
        value = np.float32(0.5) * (a + b - a * b)
        objective[...] = scale * (value.sum(axis=(1, 2, 3), dtype=np.float64) / x.shape[1])
        if dissimilarity is not None:
            np.mean(value, axis=1, keepdims=True, out=dissimilarity)
        if direct is None and cotangent is None:
            return
        by_dd = (1 - a) * (np.float32(0.5) - b / 4) * inverse_b2
        by_uu = (a - 1) * b * inverse_b2
        by_d = mean_d * ((1 - b) * (1 - a / 2) * inverse_b1 - 2 * by_dd)
        by_u = -2 * ((1 - b) * a * level * inverse_b1 + mean_u * by_uu)
        back_d, back_u, back_dd, back_uu = (
            _blur(slope, weights) for slope in (by_d, by_u, by_dd, by_uu)
        )
        factor = (scale / np.float32(x.shape[1])).reshape(-1, 1, 1, 1)
        difference = factor * (back_d + 2 * d * back_dd)
        half = factor * (back_u / 2 + u * back_uu)
        if direct is not None:
            np.add(half, difference, out=direct)
        if cotangent is not None:
            np.subtract(half, difference, out=cotangent)

    @np.errstate(all="ignore")
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
        inverse = np.exp(np.float32(-2) * log_scale)
        r = np.subtract(g, x, out=cotangent)
        square = r * r * inverse
        lost = np.float32(0.5) * square + log_scale
        objective[...] = scale * lost.sum(axis=(1, 2, 3), dtype=np.float64)
        factor = scale.reshape(-1, 1, 1, 1)
        each = 1 - square
        if log_scale.shape != x.shape:
            each = each.sum(axis=1, keepdims=True)
        np.multiply(factor, each, out=log_scale_cotangent)
        r *= inverse
        r *= factor

    @np.errstate(all="ignore")
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
        per_pixel = (-1, 1, 1, 1)
        rates, lams = rate.reshape(per_pixel), lam.reshape(per_pixel)
        weight = _weight(x, mask, restored)
        away = x - start
        g = pulled if direct is None else pulled + np.float32(direct_factor) * direct
        if not proximal:
            g = g + lams * np.sign(away)
        if first is None or second is None:
            size = rates * weight
            move = size * g
        else:
            target = g if weigh_step else weight * g
            first += np.float32(1 - beta1) * (target - first)
            second *= np.float32(beta2)
            second += np.float32(1 - beta2) * (target * target)
            root = np.sqrt(second) * np.float32((1 - beta2**step) ** -0.5) + np.float32(eps)
            move = rates * np.float32(1 / (1 - beta1**step)) * (first / root)
            if weigh_step:
                move *= weight
            size = rates * weight / root
        moved = x - move
        if proximal:
            moved = _shrunk(moved, start, size * lams)
        moved = np.clip(moved, np.float32(lower), np.float32(upper))
        l1[...] = lam * np.abs(away).sum(axis=(1, 2, 3), dtype=np.float64)
        change = np.subtract(moved, x, dtype=np.float64)
        squared_change[...] = np.einsum("bchw,bchw->b", change, change)
        largest_change[...] = np.abs(change).max(axis=(1, 2, 3))
        x[...] = moved


def _weight(x: Float, mask: Float | None, restored: Float | None) -> Float:
    weight = np.ones((1, 1, 1, 1), np.float32) if mask is None else mask
    return weight if restored is None else weight * np.square(x - restored)


def _shrunk(moved: Float, start: Float, threshold: Float) -> Float:
    away = moved - start
    inside = np.isfinite(away) & (np.abs(away) <= threshold)
    drawn = moved - np.copysign(threshold, away)
    return np.where(inside, start, np.where(np.isnan(away), away, drawn))


def _gaussian(window: int, sigma: float) -> Double:
    weights: Double = np.exp(-0.5 * ((np.arange(window) - window // 2) / sigma) ** 2)
    weights /= weights.sum()
    return weights


def _anchor(x: Float, g: Float, data_range: float) -> Float:
    """A number near (x + g) / 2 of each channel, (B, C, 1, 1): variances keep their digits."""
    middle = (..., slice(x.shape[2] // 2, None), slice(x.shape[3] // 2, None))
    u = np.float32(0.5) * (x[middle][..., :1, :1] + g[middle][..., :1, :1])
    return np.where(np.abs(u) <= 8 * data_range, u, np.float32(0))


def _blur(image: NDArray[Any], weights: Double) -> Float:
    """Windowed means along both axes, the image continued by its mirror image."""
    radius = len(weights) // 2
    for axis in (2, 3):
        sides = [(radius, radius) if k == axis else (0, 0) for k in range(4)]
        padded = np.pad(image, sides, mode="symmetric")
        length = image.shape[axis]
        image = np.zeros_like(image)
        for k, weight in enumerate(weights):
            at = (slice(None),) * axis + (slice(k, k + length),)
            image += np.float32(weight) * padded[at]
    return image
