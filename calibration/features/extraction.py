"""Features of normal images by the engine that inspection uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unblemish.calibration.features.fitter import Advance, Fitted, Fitter
from unblemish.calibration.features.images import NormalImages, model_batches
from unblemish.errors import ShapeError
from unblemish.runtime.backends.onnxruntime import OrtBackend

# Images per run of the engine. Measured on 2 cores, ResNet18 at 224 x 224: 1, 4 and 8 are the same
# within a tenth.
BATCH = 4


def fit_on_features(
    fitter: Fitter,
    images: NormalImages,
    graph: Path,
    *,
    threads: int | None = None,
    advance: Advance | None = None,
) -> Fitted:
    """Feed the features of all images to a fitter, and let it finish.

    Args:
        graph: ONNX, 'image' (batch, C, h, w) float32 in [0, 1] -> 'features' (batch, h', w', c).
    Raises: ShapeError where the graph gives anything else; what the fitter raises.
    """
    program = OrtBackend(threads).program(str(graph))
    done = 0
    try:
        for batch in model_batches(images, BATCH):
            features = np.asarray(program.run({"image": batch})["features"])
            if features.ndim != 4 or features.dtype != np.float32 or len(features) != len(batch):
                raise ShapeError(
                    f"the graph should give float32 features ({len(batch)}, h, w, c); "
                    f"it gave {features.dtype} {features.shape}."
                )
            fitter.update(features)
            done += len(batch)
            if advance is not None:
                advance("features", done, max(done, len(images)))
        return fitter.finish(advance)
    finally:
        fitter.close()
