// The drivers of preprocessing, run on the host.
#include "emulate_cuda.hpp"

#include <algorithm>

using std::max;
using std::min;

#include "preprocess.cu"

EXPORT(cut_tiles);
EXPORT(extent);
EXPORT(finish_extent);
EXPORT(planes_of_bytes);
EXPORT(planes_of_words);
EXPORT(resample);
