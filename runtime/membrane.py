"""A smooth surface over a hole: what is known around it, carried inwards.

The surface u is that of a plate under tension, the minimum of
    sum over pixels in and beside the hole of (L u)^2 + sum over pairs at the hole of (u_i - u_j)^2,
L u being neighbours times u minus their sum. Tension alone (a membrane, harmonic) has a kink at the
rim, which shows in thin scratches; bending alone overshoots in wide holes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]
Slope = Callable[[Float], Float]

_COARSEST = 8  # px: holes within so small a window are solved without a coarser start
_TOLERANCE = 5e-4  # of the known range: slope of the energy at a pixel
_MEMBRANE_STEPS, _PLATE_STEPS = 400, 100  # bending matters near the rim, where it settles first


def extend(values: Float, hole: Bool, start: Float | None = None) -> Float:
    """Replace values in a hole by the smooth surface through the values around it.

    Conjugate gradients on the hole's pixels alone, from the membrane, and that from half the size.

    Args:
        values: (..., h, w); what they are in the hole does not count. hole: as values, or
            broadcast to their shape.
        start: a guess, as values; None for the membrane.
    Returns: a copy; zero in planes that are all hole. It may leave the range of the values.
    """
    out = np.array(values, np.float32)
    where = np.broadcast_to(hole, out.shape)
    window = _window(where)
    if window is None:
        return out
    known, inside = out[window], where[window]
    guess = _membrane(known, inside) if start is None else start[window]
    out[window] = _relaxed(known, inside, guess, _plate(inside), _PLATE_STEPS)
    return _without_whole(out, where)


def membrane(values: Float, hole: Bool) -> Float:
    """As `extend`, without bending: every value in the hole is the mean of its neighbours.

    For large holes, and frames whose noise a plate would carry on.
    """
    out = np.array(values, np.float32)
    where = np.broadcast_to(hole, out.shape)
    window = _window(where)
    if window is None:
        return out
    out[window] = _membrane(out[window], where[window])
    return _without_whole(out, where)


def _without_whole(values: Float, hole: Bool) -> Float:
    """Zero in planes that are all hole."""
    values[hole & hole.all(axis=(-2, -1), keepdims=True)] = 0
    return values


def roughness(values: Float, hole: Bool) -> NDArray[np.float64]:
    """The energy of a surface, see above.

    Args:
        values: (B, C, h, w). hole: broadcast to that shape.
    Returns: (B,).
    """
    where = np.broadcast_to(hole, values.shape)
    bent = _laplacian(values) * _near(where)
    total = np.asarray(np.square(bent).sum(axis=(1, 2, 3), dtype=np.float64))
    for axis in (-2, -1):
        after, before = _halves(values.ndim, axis)
        apart = (values[after] - values[before]) * (where[after] | where[before])
        total += np.square(apart).sum(axis=(1, 2, 3), dtype=np.float64)
    return total


def _plate(hole: Bool) -> Slope:
    """Half the slope of the energy."""
    near = _near(hole)

    def slope(values: Float) -> Float:
        bent = _laplacian(values)
        return _laplacian(bent * near + values)

    return slope


def _near(hole: Bool) -> Bool:
    """The hole and its four-neighbours."""
    near = np.array(hole)
    for axis in (-2, -1):
        after, before = _halves(hole.ndim, axis)
        near[after] |= hole[before]
        near[before] |= hole[after]
    return near


def _membrane(values: Float, hole: Bool) -> Float:
    """The surface without bending: every pixel the mean of its neighbours."""
    guess = np.where(hole, np.float32(0), values)
    if max(hole.shape[-2:]) > _COARSEST:
        guess = _coarse(values, hole)
    return _relaxed(values, hole, guess, _laplacian, _MEMBRANE_STEPS)


def _window(where: Bool) -> tuple[Any, slice, slice] | None:
    """Index of the hole and two pixels around it, which is what counts; None without a hole."""
    planes = where.reshape(-1, *where.shape[-2:])
    slices = []
    for others in ((0, 2), (0, 1)):
        places = np.flatnonzero(planes.any(axis=others))
        if not places.size:
            return None
        slices.append(slice(max(int(places[0]) - 2, 0), int(places[-1]) + 3))
    return (..., slices[0], slices[1])


def _relaxed(values: Float, hole: Bool, guess: Float, slope: Slope, steps: int) -> Float:
    """Conjugate gradients until a linear slope, taken in the hole, is zero."""
    u = np.asarray(np.where(hole, guess, values), np.float32)
    enough = _TOLERANCE * max(float(np.ptp(np.where(hole, np.float32(0), values))), 1e-6)
    residual = -slope(u) * hole
    direction, size = residual.copy(), _dot(residual, residual)
    for _ in range(steps):
        if np.abs(residual).max() <= enough:
            break
        bent = slope(direction) * hole
        step = size / np.maximum(_dot(direction, bent), 1e-30)
        u += step * direction
        residual -= step * bent
        before, size = size, _dot(residual, residual)
        direction = np.asarray(residual + size / np.maximum(before, 1e-30) * direction)
    return u


def _coarse(values: Float, hole: Bool) -> Float:
    """The membrane at half the size, where a pixel is known if any of its four is, repeated."""
    known = _halved((~hole).astype(np.float32))
    mean = _halved(np.where(hole, np.float32(0), values)) / np.maximum(known, np.float32(1e-6))
    small = _membrane(mean.astype(np.float32, copy=False), known == 0)
    height, width = values.shape[-2:]
    return small.repeat(2, axis=-2).repeat(2, axis=-1)[..., :height, :width]


def _halved(values: Float) -> Float:
    """Mean of blocks of 2 x 2; an odd side is continued by zeros."""
    height, width = values.shape[-2:]
    odd = [(0, 0)] * (values.ndim - 2) + [(0, height % 2), (0, width % 2)]
    even = np.pad(values, odd)
    blocks = even.reshape(*even.shape[:-2], even.shape[-2] // 2, 2, even.shape[-1] // 2, 2)
    return np.asarray(blocks.mean(axis=(-3, -1)), np.float32)


def _laplacian(values: Float) -> Float:
    """Sum of the differences to the four neighbours, those beyond the edge left out."""
    out = np.zeros_like(values)
    for axis in (-2, -1):
        after, before = _halves(values.ndim, axis)
        apart = values[after] - values[before]
        out[after] += apart
        out[before] -= apart
    return out


def _halves(axes: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all but the first, and all but the last, along one axis."""
    after, before = [slice(None)] * axes, [slice(None)] * axes
    after[axis], before[axis] = slice(1, None), slice(None, -1)
    return tuple(after), tuple(before)


def _dot(a: Float, b: Float) -> Float:
    return np.asarray((a * b).sum(axis=(-2, -1), keepdims=True), np.float32)
