// The drivers of what a detector does between its passes, run on the host.
#include "emulate_cuda.hpp"

#include "add_row.cu"
#include "cells.cu"
#include "decrease.cu"
#include "projection.cu"

EXPORT(add_row);
EXPORT(add_taken);
EXPORT(learn_surroundings);
EXPORT(project_axis);
EXPORT(recent_change);
EXPORT(spread_rows);
EXPORT(sum_rows);
EXPORT(surprise);
EXPORT(take_rows);
