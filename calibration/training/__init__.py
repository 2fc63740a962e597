"""Training of generators on normal images."""

from unblemish.calibration.training.options import TrainOptions

__all__ = ["TrainOptions"]
