"""`FeatureTerms` by the float64 functions of this package, rounded once into the outputs."""

from __future__ import annotations

from unblemish.kernels import feature_checks as checks
from unblemish.kernels.feature_terms import Float, Int
from unblemish.kernels.reference import candidates as by_candidates
from unblemish.kernels.reference import mahalanobis as by_place


class ReferenceFeatureTerms:
    """See `FeatureTerms` for every method."""

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
        scores[...], slope = by_place.mahalanobis(f, mean, whitening, cells)
        if cotangent is not None:
            cotangent[...] = slope

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
        found = by_place.mahalanobis_low_rank(f, mean, basis, inverse_variance, cells)
        scores[...], slope = found
        if cotangent is not None:
            cotangent[...] = slope

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
        index[...], distances[...] = by_candidates.top_candidates(queries, bank, index.shape[1])

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
        scores[...], slope, chosen[...] = by_candidates.nearest_candidate(f, bank, candidates)
        if cotangent is not None:
            cotangent[...] = slope
