"""Greedy k-centre selection: few features that leave no other one far away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.features.fitter import Advance, Float
from unblemish.errors import ConfigError

_BLOCK = 8192  # rows of one pass: projections of a block stay within the caches
_REPORT = 64


def coreset(
    features: Float,
    count: int,
    *,
    seed: int,
    project: int | None = 128,
    progress: Advance | None = None,
) -> NDArray[np.intp]:
    """Choose `count` rows, each the farthest from those chosen before it.

    The greedy choice is at most twice as far from the farthest row as the best choice is. Distances
    are taken after a random projection, which keeps them within a few per cent; on the projected
    rows the choice is exact.

    Args:
        features: (N, c) float32; may lie on disk, it is read once.
        count: rows to choose, 1 to N.
        seed: of the projection and of the first row.
        project: dimensions after the projection; None, or as many as c or more, for none.
        progress: called with ('coreset', rows chosen, count).
    Returns: (count,) rows of `features`, in the order chosen.
    Raises: ConfigError where `count` is out of range.
    Source: Roth et al., PatchCore, algorithm 1; Gonzalez, 'Clustering to minimize the maximum
        intercluster distance', 1985.
    """
    total = len(features)
    if not 1 <= count <= total:
        raise ConfigError(f"a coreset of {total} features has 1 to {total} of them, not {count}.")
    rng = np.random.default_rng(seed)
    rows = _projected(features, project, rng)
    norms = np.einsum("nd,nd->n", rows, rows)
    nearest = np.full(total, np.inf, np.float32)
    product = np.empty(min(_BLOCK, total), np.float32)
    chosen = np.empty(count, np.intp)
    chosen[0] = rng.integers(total)
    for number in range(1, count):
        chosen[number] = _farthest(rows, norms, nearest, int(chosen[number - 1]), product)
        if progress is not None and (number + 1) % _REPORT == 0:
            progress("coreset", number + 1, count)
    if progress is not None:
        progress("coreset", count, count)
    return chosen


def _projected(features: Float, project: int | None, rng: np.random.Generator) -> Float:
    channels = features.shape[1]
    if project is None or project >= channels:
        return np.ascontiguousarray(features, np.float32)
    matrix = rng.standard_normal((channels, project)).astype(np.float32) / np.sqrt(project)
    out = np.empty((len(features), project), np.float32)
    for first in range(0, len(features), _BLOCK):
        np.matmul(
            features[first : first + _BLOCK],
            matrix.astype(np.float32),
            out=out[first : first + _BLOCK],
        )
    return out


def _farthest(rows: Float, norms: Float, nearest: Float, centre: int, product: Float) -> int:
    """Take in a new centre, and return the row that is farthest from all centres.

    nearest: squared distance to the nearest centre, updated in place; -1 where a row is a centre.
    """
    nearest[centre] = -1
    best, where = -np.inf, -1
    for first in range(0, len(rows), _BLOCK):
        part = slice(first, min(first + _BLOCK, len(rows)))
        found = product[: part.stop - part.start]
        np.matmul(rows[part], rows[centre], out=found)
        found *= -2
        found += norms[part]
        found += norms[centre]
        np.minimum(nearest[part], found, out=nearest[part], where=nearest[part] >= 0)
        at = int(nearest[part].argmax())
        if nearest[first + at] > best:
            best, where = float(nearest[first + at]), first + at
    return where
