// The drivers of RGI and of the solvers, run on the host.
#include "emulate_cuda.hpp"

#include "adam.cu"
#include "finetuning.cu"
#include "norms.cu"
#include "progress.cu"
#include "project_ball.cu"
#include "residual.cu"
#include "rgi_closed_form.cu"
#include "rgi_gradient.cu"

EXPORT(adam);
EXPORT(all_finite);
EXPORT(finish_norms);
EXPORT(finish_sum);
EXPORT(hold);
EXPORT(norms);
EXPORT(project_ball);
EXPORT(residual_l1);
EXPORT(residual_l2);
EXPORT(rgi_closed_form);
EXPORT(rgi_gradient);
EXPORT(squared_distance);
EXPORT(adam_scheduled);
EXPORT(keep_rows);
EXPORT(settle);
EXPORT(void_rows);
