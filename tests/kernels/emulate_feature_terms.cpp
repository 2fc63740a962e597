// The drivers of the distances of features, run on the host.
#include "emulate_cuda.hpp"

#include "mahalanobis.cu"
#include "mahalanobis_low_rank.cu"
#include "nearest_candidate.cu"
#include "top_candidates.cu"

EXPORT(bank_norms);
EXPORT(mahalanobis);
EXPORT(mahalanobis_low_rank);
EXPORT(nearest_candidate);
EXPORT(rank_candidates);
EXPORT(settle_candidates);
