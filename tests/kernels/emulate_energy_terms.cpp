// The drivers of energy projection, run on the host.
#include "emulate_cuda.hpp"

#include "dssim.cu"
#include "norms.cu"

EXPORT(dssim);
EXPORT(dssim_gradient);
EXPORT(finish_norms);
EXPORT(finish_sum);
