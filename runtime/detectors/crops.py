"""Scores of a batch of crops, as if each were still part of its model image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.crops import BATCH_PIXELS, Box
from unblemish.runtime.detectors.protocol import FEATURES, IMAGE
from unblemish.runtime.solvers.protocol import Double, Float, Index
from unblemish.runtime.workspace import Workspace

if TYPE_CHECKING:
    from unblemish.runtime.detectors.load import Detector
    from unblemish.runtime.methods.decomposition import View

Bool = NDArray[np.bool_]


class CropScores(Protocol):
    """l_n of a batch of crops: the sum of the anomaly scores of the cells that count."""

    cells: Float  # (B, h, w) scores at the last evaluation of each item

    def evaluate(self, images: Float, items: Index) -> tuple[Double, Float]:
        """Sum of scores (b,) and gradient (b, C, h, w) of crops `items`, valid until the next call.

        Args:
            images: (b, C, h, w) in model intensities, row b is crop items[b].
        """


class FeatureCrops:
    """Crops of detectors that score feature vectors (PaDiM, PatchCore).

    The features of a crop differ from those of the whole image near its edges. The difference is
    taken once, at the start n0, and held fixed:  f(n) ~ f_crop(n) + (f_whole(n0) - f_crop(n0)).

    Args:
        detector: graphs and statistics.
        start: (B, C, h, w) crops of the start n0, in model intensities.
        whole: (B, H/stride, W/stride, c) features of n0's whole model image, row by row of `start`;
            None where the crops are whole images.
        boxes: of the crops, model px.
        counted: (B, h/stride, w/stride) cells whose scores count.
        grid_width: cells in a row of the whole model image.
    """

    def __init__(
        self,
        detector: Detector,
        start: Float,
        whole: Sequence[Float] | None,
        boxes: Sequence[Box],
        counted: Bool,
        grid_width: int,
    ) -> None:
        self._pair = detector.programs.pair
        stride, width = detector.record.stride, grid_width
        features = np.array(detector.features(start))
        items, rows, columns, channels = features.shape
        self._shape = rows, columns, channels
        self._correction: Float | None = None
        if whole is not None:
            near = np.stack([
                f[b.top // stride : b.bottom // stride, b.left // stride : b.right // stride]
                for f, b in zip(whole, boxes, strict=True)
            ])  # fmt: skip
            self._correction = near - features
            features = near
        number = np.arange(rows)[:, None] * width + np.arange(columns)
        self._scorers = []
        for item, box in enumerate(boxes):
            first = box.top // stride * width + box.left // stride
            cells = np.where(counted[item], number + first, -1).astype(np.int32)
            at = features[item].reshape(1, -1, channels)
            self._scorers.append(detector.model.scorer(at, cells.reshape(1, -1)))
        self.cells = np.zeros((items, rows, columns), np.float32)
        self._space = Workspace()

    def evaluate(self, images: Float, items: Index) -> tuple[Double, Float]:
        """See `CropScores`."""
        features = self._corrected(self._pair.forward({IMAGE: images})[FEATURES], items)
        rows, columns, channels = self._shape
        cotangent = self._space.array("cotangent", (len(items), rows * columns, channels))
        value = np.empty(len(items))
        for row, item in enumerate(items):
            part = slice(row, row + 1)
            scores = self._scorers[item](features[part], cotangent=cotangent[part])
            self.cells[item] = scores.reshape(rows, columns)
            value[row] = scores.sum(dtype=np.float64)
        gradient = self._pair.backward(
            {FEATURES: cotangent.reshape(len(items), rows, columns, channels)}
        )
        return value, gradient[IMAGE]

    def _corrected(self, features: Float, items: Index) -> Float:
        rows, columns, channels = self._shape
        flat: Float = features.reshape(len(items), rows * columns, channels)
        if self._correction is None:
            return flat
        out: Float = self._space.array("features", flat.shape)
        correction = self._correction
        for row, item in enumerate(items):
            np.add(flat[row], correction[item].reshape(-1, channels), out=out[row])
        return out


class CropCells:
    """Exact scores of one crop in many versions, e.g. with different parts of it restored.

    The correction for the surroundings is that of the frame itself: f_whole(x) - f_crop(x).

    Args:
        frame: (1, C, h, w) the crop of the frame, in model intensities.
        whole: (H/stride, W/stride, c) features of the frame's whole model image.
        box: of the crop, model px. grid_width: cells in a row of the whole model image.
    """

    def __init__(
        self, detector: Detector, frame: Float, whole: Float, box: Box, grid_width: int
    ) -> None:
        self._detector = detector
        stride = detector.record.stride
        top, left = box.top // stride, box.left // stride
        near = whole[top : box.bottom // stride, left : box.right // stride]
        self._correction = near - detector.features(frame)[0]
        rows, columns = near.shape[:2]
        number = np.arange(top, top + rows)[:, None] * grid_width + np.arange(left, left + columns)
        self._cells = number.reshape(-1).astype(np.int32)

    def features(self, images: Float) -> Float:
        """Features (K, cells, c) of crops (K, C, h, w) as parts of the frame; a copy."""
        found: Float = self._detector.features(images) + self._correction
        return found.reshape(len(images), len(self._cells), -1)

    def scores(self, features: Float) -> Float:
        """Squared distances (K, cells) of such features."""
        return self._detector.model.scores_at(features, self._cells)


class Versions(Protocol):
    """Exact scores of a crop whose native window is given in other versions."""

    def scores(self, windows: Float) -> Float:
        """Squared distances (K, cells) of windows (K, C, H, W), in units."""


class Tiles(Protocol):
    """The model images of one frame under a detector."""

    def maps(self) -> Float:
        """Anomaly maps (T, h, w), see `Detector.plain`."""

    def versions(self, tile: int, box: Box, view: View) -> Versions:
        """Prepare the scores of one crop.

        Args:
            box: of the crop, model px.
            view: of one window, about the frame: `base` is the frame's window, `images` the crop.
        """


@dataclass(frozen=True)
class CropVersions:
    """See `Versions`."""

    cells: CropCells
    view: View

    def scores(self, windows: Float) -> Float:
        """See `Versions`."""
        step = max(BATCH_PIXELS // self.view.images[0, 0].size, 1)
        space, features = Workspace(), []
        for first in range(0, len(windows), step):
            part = windows[first : first + step]
            images = self.view.project(part, np.zeros(len(part), np.intp), space)
            features.append(self.cells.features(images))
        return self.cells.scores(np.concatenate(features))


class HostTiles:
    """See `Tiles`. images: (T, C, h, w). The features of a tile are kept once they are needed."""

    def __init__(self, detector: Detector, images: Float) -> None:
        self._detector, self._images = detector, images
        self._features: dict[int, Float] = {}

    def maps(self) -> Float:
        """See `Tiles`."""
        return self._detector.plain(self._images)

    def versions(self, tile: int, box: Box, view: View) -> Versions:
        """See `Tiles`."""
        if tile not in self._features:
            image = self._images[tile : tile + 1]
            self._features[tile] = np.array(self._detector.features(image)[0])
        width = self._images.shape[3] // self._detector.record.stride
        whole = self._features[tile]
        return CropVersions(CropCells(self._detector, view.images, whole, box, width), view)
