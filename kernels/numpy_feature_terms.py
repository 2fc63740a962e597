"""Distances of features in float32 NumPy; see `FeatureTerms`. Temporary arrays are bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels import feature_checks as checks
from unblemish.kernels.feature_terms import Float, Int

_CELLS = 512  # whose statistics are unpacked or read at once
_QUERIES = 256  # whose products with the bank stay within the caches

Where = tuple[NDArray[np.intp], NDArray[np.intp]]


class NumpyFeatureTerms:
    """`FeatureTerms` in vectorised NumPy: a few passes over memory, matrix products by BLAS."""

    def mahalanobis(
        self,
        f: Float,
        mean: Float,
        whitening: Float,
        cells: Int,
        *,
        scores: Float,
        cotangent: Float | None,
    ) -> None:
        """See `FeatureTerms`."""
        checks.mahalanobis(f, mean, whitening, cells, scores=scores, cotangent=cotangent)
        _clear(scores, cotangent)
        for at in _counted(cells >= 0):
            place = cells[at]
            w = _unpacked(whitening, place, f.shape[2])
            t = np.matmul(w, (f[at] - mean[place])[..., None])
            scores[at] = np.square(t).sum(axis=(1, 2))
            if cotangent is not None:
                cotangent[at] = 2 * np.matmul(w.swapaxes(1, 2), t)[..., 0]

    def mahalanobis_low_rank(
        self,
        f: Float,
        mean: Float,
        basis: Float,
        inverse_variance: Float,
        cells: Int,
        *,
        scores: Float,
        cotangent: Float | None,
    ) -> None:
        """See `FeatureTerms`."""
        checks.mahalanobis_low_rank(
            f, mean, basis, inverse_variance, cells, scores=scores, cotangent=cotangent
        )
        _clear(scores, cotangent)
        for at in _counted(cells >= 0):
            place = cells[at]
            d, b = f[at] - mean[place], basis[place]
            along = np.matmul(b.swapaxes(1, 2), d[..., None])
            rest = d - np.matmul(b, along)[..., 0]
            rest *= inverse_variance[place][:, None]
            scores[at] = np.einsum("nc,nc->n", d, rest)
            if cotangent is not None:
                cotangent[at] = 2 * rest

    def top_candidates(
        self,
        queries: Float,
        bank: Float,
        *,
        index: Int,
        distances: Float,
        norms: Float | None = None,
    ) -> None:
        """See `FeatureTerms`."""
        checks.top_candidates(queries, bank, index=index, distances=distances, norms=norms)
        count = index.shape[1]
        length = np.einsum("nc,nc->n", bank, bank) if norms is None else norms
        for first in range(0, len(queries), _QUERIES):
            part = slice(first, first + _QUERIES)
            ranking = queries[part] @ bank.T
            ranking *= -2
            ranking += length
            near = _smallest(ranking, count)
            for row, query in enumerate(queries[part]):
                found = np.square(query - bank[near[row]]).sum(axis=1)
                order = np.lexsort((near[row], found))
                index[first + row], distances[first + row] = near[row][order], found[order]

    def nearest_candidate(
        self,
        f: Float,
        bank: Float,
        candidates: Int,
        *,
        scores: Float,
        cotangent: Float | None,
        chosen: Int,
    ) -> None:
        """See `FeatureTerms`."""
        checks.nearest_candidate(
            f, bank, candidates, scores=scores, cotangent=cotangent, chosen=chosen
        )
        _clear(scores, cotangent)
        chosen[...] = -1
        listed = np.logical_and.accumulate(candidates >= 0, axis=2).sum(axis=2)
        for at in zip(*np.nonzero(listed), strict=True):
            rows = candidates[at][: listed[at]]
            d = f[at] - bank[rows]
            distances = np.einsum("kc,kc->k", d, d)
            nearest = int(distances.argmin())
            scores[at], chosen[at] = distances[nearest], rows[nearest]
            if cotangent is not None:
                np.multiply(2, d[nearest], out=cotangent[at])


def _clear(scores: Float, cotangent: Float | None) -> None:
    scores[...] = 0
    if cotangent is not None:
        cotangent[...] = 0


def _counted(counts: NDArray[np.bool_]) -> Iterator[Where]:
    """The cells that count, a block of them at a time."""
    items, cells = np.nonzero(counts)
    for first in range(0, len(items), _CELLS):
        part = slice(first, first + _CELLS)
        yield items[part], cells[part]


def _unpacked(whitening: Float, places: NDArray[Any], channels: int) -> Float:
    """(n, c, c) lower triangular matrices of places (n,)."""
    packed = whitening[places]
    w = np.zeros((len(places), channels, channels), np.float32)
    first = 0
    for row in range(channels):  # ten times as fast as one assignment by indices
        w[:, row, : row + 1] = packed[:, first : first + row + 1]
        first += row + 1
    return w


def _smallest(ranking: Float, count: int) -> NDArray[np.intp]:
    """Columns of the `count` smallest of each row, in any order."""
    if count == 1:
        return np.asarray(ranking.argmin(axis=1)[:, None])
    if count < ranking.shape[1]:
        return np.argpartition(ranking, count - 1, axis=1)[:, :count]
    return np.broadcast_to(np.arange(count), ranking.shape)
