"""What a raw score is measured by: the place in the image, and the frame it comes from.

Place: the residual of a normal part is larger at edges and in texture than on plain surface. With
s the root mean square score of the normals at a pixel and m the mean of s over the image,

    weight = (1 + b) m / (s + b m),    b = 1/4,

which is 1 where s = m and at most 5 where the normals agree to the last bit.

Frame: some frames are rougher all over than others. With t the median score of the frame, but no
more than the largest of any normal (beyond, it is no roughness but a defect everywhere), and u the
typical median of the normals, the whole frame is multiplied by

    (1 + c) u / (t + c u),    c = 1/2.

Both keep the unit.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Preprocess
from unblemish.errors import BundleError, ShapeError
from unblemish.runtime.geometry import Geometry

Map = NDArray[np.float32]

_PIXEL_FLOOR = 0.25  # b: keeps noise on plain surface from becoming a defect
_FRAME_FLOOR = 0.5  # c
_SAMPLED = 100_000  # pixels that the median is taken over


class Level(NamedTuple):
    """Median score of normal frames: the typical one and the largest."""

    typical: float
    largest: float

    def factor(self, score: Map) -> float:
        """What the scores of a frame are multiplied by."""
        found = min(frame_level(score), self.largest)
        return (1 + _FRAME_FLOOR) * self.typical / (found + _FRAME_FLOOR * self.typical)


@dataclass(frozen=True)
class ScoreWeight:
    """Weights by place and by frame, applied to score maps of any native size.

    Args:
        values: (h, w) float32, > 0, at the model's size; None: every place counts the same. Only
            for a geometry of one image per frame ('stretch', 'letterbox').
        preprocess: of the bundle.
        level: None: every frame counts the same.
    Raises: ShapeError where the values have another size than the model.
    """

    values: Map | None
    preprocess: Preprocess
    level: Level | None = None
    _native: dict[tuple[int, ...], Map] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        expected = self.preprocess.height, self.preprocess.width
        if self.values is not None and self.values.shape != expected:
            raise ShapeError(f"score weights must be {expected}; found {self.values.shape}.")

    def __call__(self, score: Map) -> Map:
        """The weighted score, a new array of the same shape."""
        weighted = score.copy() if self.values is None else score * self._at(score.shape)
        if self.level is not None:
            weighted *= np.float32(self.level.factor(weighted))
        return np.asarray(weighted, np.float32)

    def _at(self, shape: tuple[int, ...]) -> Map:
        native = self._native.get(shape)
        if native is None and self.values is not None:
            geometry = plain_geometry(self.preprocess)
            native = geometry.to_native(self.values[None, None], shape)[..., 0]
            # One frame size is the rule; many must not fill the memory.
            if len(self._native) >= 4:
                self._native.clear()
            self._native[shape] = native
        return np.asarray(native)


def frame_level(score: Map) -> float:
    """Median of a score map, over an even grid of at most 100,000 pixels or so."""
    step = max(1, math.isqrt(score.size // _SAMPLED))
    return float(np.median(score[::step, ::step]))


def plain_geometry(preprocess: Preprocess) -> Geometry:
    """The geometry of a bundle for maps: one channel, intensities as they are."""
    return Geometry(preprocess.model_copy(update={"channels": 1, "low": 0.0, "high": 1.0}))


def weight_of(spread: Map) -> Map:
    """Weights of a map of root mean square scores, (h, w); see the module for the equation."""
    mean = float(spread.mean())
    if mean <= 0:
        return np.ones_like(spread)
    return np.asarray((1 + _PIXEL_FLOOR) * mean / (spread + _PIXEL_FLOOR * mean), np.float32)


def encode_weight(values: Map) -> bytes:
    """The bytes of the .npy file that a bundle carries."""
    stream = io.BytesIO()
    np.save(stream, values.astype(np.float32), allow_pickle=False)
    return stream.getvalue()


def load_weight(bundle: Bundle) -> ScoreWeight | None:
    """The weights of a bundle's calibration; None where it has none.

    Raises: BundleError where the file is missing, not vouched for, or not such an array.
    """
    calibration = bundle.manifest.calibration
    if calibration is None or (calibration.weight_file is None and calibration.level is None):
        return None
    level = None if calibration.level is None else Level(*calibration.level)
    values = None if calibration.weight_file is None else _read(bundle, calibration.weight_file)
    return ScoreWeight(values, bundle.manifest.preprocess, level)


def _read(bundle: Bundle, name: str) -> Map:
    path = bundle.file(name)
    p = bundle.manifest.preprocess
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
        if values.shape != (p.height, p.width) or not np.isfinite(values).all():
            raise ValueError(f"expected finite numbers of shape {(p.height, p.width)}")
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            f"bundle {bundle.path}: the score weights '{name}' cannot be used: {error}. "
            "Calibrate the bundle again."
        ) from error
    return np.asarray(values, np.float32)
