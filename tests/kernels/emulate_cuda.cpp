// The drivers of RGI and of the solvers, run on the host.
#include "emulate_cuda.hpp"

#include "adam.cu"
#include "finetuning.cu"
#include "further_terms.cu"
#include "latent_prior.cu"
#include "lbfgs.cu"
#include "norms.cu"
#include "progress.cu"
#include "project_ball.cu"
#include "residual.cu"
#include "rgi_closed_form.cu"
#include "rgi_gradient.cu"
#include "rgi_l1.cu"

EXPORT(adam);
EXPORT(adam_chunks);
EXPORT(add_values);
EXPORT(all_finite);
EXPORT(disbelief);
EXPORT(finish_norms);
EXPORT(finish_sum);
EXPORT(hold);
EXPORT(norms);
EXPORT(project_ball);
EXPORT(residual_l1);
EXPORT(residual_l2);
EXPORT(rgi_closed_form);
EXPORT(rgi_closed_form_l1);
EXPORT(rgi_gradient);
EXPORT(rgi_gradient_l1);
EXPORT(squared_distance);
EXPORT(adam_scheduled);
EXPORT(keep_rows);
EXPORT(keep_unmasked);
EXPORT(latent_prior);
EXPORT(lbfgs_step);
EXPORT(lbfgs_trial);
EXPORT(settle);
EXPORT(void_chunks);
EXPORT(settle_stages);
