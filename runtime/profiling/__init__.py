"""Where the time goes, and how far that is from what the machine can do."""

from unblemish.runtime.profiling.autoencoder import profile_projection
from unblemish.runtime.profiling.detector import CropTimes, profile_crops, profile_inspections
from unblemish.runtime.profiling.peaks import Peaks, measure_peaks
from unblemish.runtime.profiling.roofline import Roofline, roofline
from unblemish.runtime.profiling.stages import profile_stages
from unblemish.runtime.profiling.steps import StepTimes, profile_steps
from unblemish.runtime.profiling.timing import Times

__all__ = [
    "CropTimes",
    "Peaks",
    "Roofline",
    "StepTimes",
    "Times",
    "measure_peaks",
    "profile_crops",
    "profile_inspections",
    "profile_projection",
    "profile_stages",
    "profile_steps",
    "roofline",
]
