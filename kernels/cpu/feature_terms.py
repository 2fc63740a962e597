"""`FeatureTerms` by the compiled module."""

from __future__ import annotations

from unblemish.kernels import _cpu
from unblemish.kernels import feature_checks as checks
from unblemish.kernels.feature_terms import Float, Int


class CpuFeatureTerms:
    """See `FeatureTerms`. Part of `CpuKernels`, which makes the engine."""

    _engine: _cpu.Engine

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
        try:
            self._engine.mahalanobis(f, mean, whitening, cells, scores, cotangent)
        except (TypeError, ValueError):
            checks.mahalanobis(f, mean, whitening, cells, scores=scores, cotangent=cotangent)
            raise

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
        try:
            self._engine.mahalanobis_low_rank(
                f, mean, basis, inverse_variance, cells, scores, cotangent
            )
        except (TypeError, ValueError):
            checks.mahalanobis_low_rank(
                f, mean, basis, inverse_variance, cells, scores=scores, cotangent=cotangent
            )
            raise

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
        try:
            self._engine.top_candidates(queries, bank, index, distances, norms)
        except (TypeError, ValueError):
            checks.top_candidates(queries, bank, index=index, distances=distances, norms=norms)
            raise

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
        try:
            self._engine.nearest_candidate(f, bank, candidates, scores, cotangent, chosen)
        except (TypeError, ValueError):
            checks.nearest_candidate(
                f, bank, candidates, scores=scores, cotangent=cotangent, chosen=chosen
            )
            raise
