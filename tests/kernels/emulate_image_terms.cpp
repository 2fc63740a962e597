// The drivers of F2PAD's terms and update, run on the host.
#include "emulate_cuda.hpp"

#include "adan.cu"
#include "log_penalty.cu"
#include "mixture_prior.cu"
#include "norms.cu"
#include "sharing.cu"
#include "total_variation.cu"

EXPORT(adan);
EXPORT(adan_scheduled);
EXPORT(finish_added_sum);
EXPORT(log_penalty);
EXPORT(mixture_prior);
EXPORT(share_gradient);
EXPORT(share_gradient_direct);
EXPORT(share_gradient_direct_wide);
EXPORT(share_gradient_wide);
EXPORT(sharing_weights);
EXPORT(sharing_weights_wide);
EXPORT(total_variation);
