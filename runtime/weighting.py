"""Per-pixel weights of the score: how far normal parts stray at each place of the image.

For parts that lie still in the image the residual of a normal part is larger at edges and in
texture than on plain surface. With s the mean score of the normals at a pixel and m the mean of s,

    weight = (1 + b) m / (s + b m),    b = 1/4,

which is 1 where s = m, at most 5 where the normals agree to the last bit, and keeps the unit.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Preprocess
from unblemish.errors import BundleError, ShapeError
from unblemish.runtime.geometry import Geometry

Map = NDArray[np.float32]

_FLOOR = 0.25  # b: keeps noise on plain surface from becoming a defect


@dataclass(frozen=True)
class ScoreWeight:
    """Weights at the model's size, applied to score maps of any native size.

    Args:
        values: (h, w) float32, > 0, at the model's size.
        preprocess: of the bundle; a geometry of one image per frame ('stretch', 'letterbox').
    Raises: ShapeError where the weights have another size than the model.
    """

    values: Map
    preprocess: Preprocess
    _native: dict[tuple[int, ...], Map] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        expected = self.preprocess.height, self.preprocess.width
        if self.values.shape != expected:
            raise ShapeError(f"score weights must be {expected}; found {self.values.shape}.")

    def __call__(self, score: Map) -> Map:
        """The weighted score, a new array of the same shape."""
        return np.asarray(score * self._at(score.shape), np.float32)

    def _at(self, shape: tuple[int, ...]) -> Map:
        native = self._native.get(shape)
        if native is None:
            native = plain_geometry(self.preprocess).to_native(self.values[None, None], shape)
            native = native[..., 0]
            # One frame size is the rule; many must not fill the memory.
            if len(self._native) >= 4:
                self._native.clear()
            self._native[shape] = native
        return native


def plain_geometry(preprocess: Preprocess) -> Geometry:
    """The geometry of a bundle for maps: one channel, intensities as they are."""
    return Geometry(preprocess.model_copy(update={"channels": 1, "low": 0.0, "high": 1.0}))


def weight_of(spread: Map) -> Map:
    """Weights of a map of mean scores, (h, w); see the module for the equation."""
    mean = float(spread.mean())
    if mean <= 0:
        return np.ones_like(spread)
    return np.asarray((1 + _FLOOR) * mean / (spread + _FLOOR * mean), np.float32)


def encode_weight(weight: ScoreWeight) -> bytes:
    """The bytes of the .npy file that a bundle carries."""
    stream = io.BytesIO()
    np.save(stream, weight.values.astype(np.float32), allow_pickle=False)
    return stream.getvalue()


def load_weight(bundle: Bundle) -> ScoreWeight | None:
    """The weights of a bundle's calibration; None where it has none.

    Raises: BundleError where the file is missing, not vouched for, or not such an array.
    """
    calibration = bundle.manifest.calibration
    if calibration is None or calibration.weight_file is None:
        return None
    path = bundle.file(calibration.weight_file)
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
        return ScoreWeight(np.asarray(values, np.float32), bundle.manifest.preprocess)
    except (OSError, ValueError, ShapeError) as error:
        raise BundleError(
            f"bundle {bundle.path}: the score weights '{calibration.weight_file}' cannot be used: "
            f"{error}. Calibrate the bundle again."
        ) from error
