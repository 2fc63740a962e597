"""Distances of features to what is normal, with their slopes; part of the `Kernels` protocol.

Features are float32, channels last: f is (B, L, c), B items of L cells. Distances are squared.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int = NDArray[np.int32]


class FeatureTerms(Protocol):
    """What the detectors need of the kernels.

    `cells` (B, L) int32 names the place of each cell in the statistics; below 0: the cell does not
    count, its score and cotangent are 0. `cotangent` may be None where it is not wanted.
    """

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
        """s = ||W d||^2 and d s / d f = 2 W^T W d, d = f - mean, of the Gaussian of the place.

        Args:
            f: (B, L, c). mean: (P, c), of P places. cells: (B, L), below P.
            whitening: (P, c (c + 1) / 2), the rows of the lower triangular W behind each other.
            scores: out, (B, L). cotangent: out, (B, L, c) or None.
        Raises: ConfigError where a cell names no place.
        Source: seed 003, eq. 7.
        """

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
        """s = p (||d||^2 - ||B^T d||^2) and d s / d f = 2 p (d - B B^T d), d = f - mean.

        Args:
            basis: (P, c, r), B of each place. inverse_variance: (P,), p. The others as in
                `mahalanobis`.
        Raises: ConfigError where a cell names no place.
        Source: seed 003, eq. 7, with the inverse covariance p (I - B B^T).
        """

    def top_candidates(
        self,
        queries: Float,
        bank: Float,
        *,
        index: Int,
        distances: Float,
        norms: Float | None = None,
    ) -> None:
        """Find the k rows of the bank nearest to each query, the nearest first.

        They are ranked by ||m||^2 - 2 q m in float32, over the whole bank: of two rows whose
        distances differ by less than the rounding of that, either may be taken. The distances
        themselves are sums of squared differences.

        Args:
            queries: (M, c). bank: (N, c). index: out, (M, k) int32, k from 1 to N.
            distances: out, (M, k), ascending; of equal ones, the lower row comes first.
            norms: (N,) ||m||^2; None to compute them.
        """

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
        """s = min over the candidates m of ||f - m||^2 and d s / d f = 2 (f - m).

        Args:
            bank: (N, c). candidates: (B, L, k) int32, rows of the bank, likely ones first: the sum
                of a row ends where it exceeds the best so far. A number below 0 ends a list; where
                the first is, the cell does not count.
            chosen: out, (B, L) int32, the row taken (the first of equals), -1 where none counts.
        Raises: ConfigError where a candidate is not in the bank.
        Source: seed 003, eq. 5.
        """
