// The drivers of energy projection, run on the host.
#include "emulate_cuda.hpp"

#include "blend.cu"
#include "dssim.cu"
#include "energy_step.cu"
#include "gaussian_nll.cu"
#include "norms.cu"

EXPORT(blend);
EXPORT(dssim);
EXPORT(dssim_gradient);
EXPORT(energy_step);
EXPORT(energy_step_scheduled);
EXPORT(finish_norms);
EXPORT(finish_sum);
EXPORT(gaussian_nll);
EXPORT(half_variance);
EXPORT(dssim_wide);
EXPORT(dssim_gradient_wide);
