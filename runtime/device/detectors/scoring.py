"""Scores of model images and of versions of their crops, from images up to scores down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike

from unblemish.errors import BackendError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.crops import Box
from unblemish.runtime.detectors.crops import Versions
from unblemish.runtime.detectors.protocol import Cells
from unblemish.runtime.device.detectors.cell_scores import DeviceModel, DeviceScorer
from unblemish.runtime.device.detectors.features import FeaturePass, FeaturePasses, Size
from unblemish.runtime.device.detectors.projection import DeviceView, ViewTables
from unblemish.runtime.device.memory import front, item, own_memory, placed
from unblemish.runtime.solvers.protocol import Float

_LEAST = 8  # versions of a crop at once, so that passes of few batches occur


@dataclass(frozen=True)
class Seen:
    """Model images of which the features may still be on the device.

    Args:
        cells: (T, h, w) squared distances. held: where the features are; None where the images took
            several launches. run: of `held`, when it wrote them.
    """

    cells: Float
    held: FeaturePass | None
    run: int


@dataclass(frozen=True)
class _Whole:
    """What scores the model images of a pass."""

    scorer: DeviceScorer
    scores: DeviceArray


class DeviceScoring:
    """Images to scores by one extractor and one model.

    Args:
        stride: model px per cell. width: of a model image, px.
    """

    def __init__(
        self,
        kernels: CudaKernels,
        passes: FeaturePasses,
        model: DeviceModel,
        *,
        stride: int,
        width: int,
    ) -> None:
        self.kernels, self.passes, self.model = kernels, passes, model
        self.stride, self.columns = stride, width // stride
        self.current: object = None  # whose tables lie in `scratch`
        self._whole: WeakKeyDictionary[FeaturePass, _Whole] = WeakKeyDictionary()

    def scratch(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """Memory of that name among this object's own, see `Device.scratch`."""
        return self.kernels.device.scratch(f"{name} {id(self)}", shape, dtype)

    def see(self, images: Float) -> Seen | None:
        """Score model images (T, C, H, W); None where that is for the host."""
        found = self._pass_for(len(images), (images.shape[2], images.shape[3]))
        if found is None:
            return None
        whole, out = self._whole[found], []
        for first in range(0, len(images), found.batch):
            part = images[first : first + found.batch]
            self.run(found, part)
            whole.scorer.enqueue(found.cells, scores=whole.scores, cotangent=None)
            out.append(self.kernels.device.to_host(front(whole.scores, len(part))))
        cells = np.concatenate(out).reshape(len(images), *found.features.shape[1:3])
        return Seen(cells, found if len(out) == 1 else None, found.run)

    def run(self, found: FeaturePass, images: Float) -> None:
        """Put the features of up to a batch of images on the stream."""
        held = front(found.images, len(images))
        self.kernels.device.upload(held, np.ascontiguousarray(images))
        found.enqueue()

    def features(self, image: Float, seen: Seen, number: int) -> DeviceArray:
        """Features (1, h, w, c) of an image (1, C, H, W) that was seen as that number.

        They are computed again where they are gone.
        """
        if seen.held is not None and seen.held.run == seen.run:
            return item(seen.held.features, number)
        found = self.passes.get(1, (image.shape[2], image.shape[3]))
        assert found is not None  # the image was seen
        self.run(found, image)
        return front(found.features, 1)

    def cell_numbers(self, box: Box) -> Cells:
        """Numbers of the cells of a crop within its model image."""
        s = self.stride
        rows = np.arange(box.top // s, box.bottom // s, dtype=np.int32)[:, None]
        columns = np.arange(box.left // s, box.right // s, dtype=np.int32)
        return np.asarray((rows * self.columns + columns).reshape(-1), np.int32)

    def _pass_for(self, count: int, size: Size) -> FeaturePass | None:
        """A pass for whole model images, with what scores them."""
        found = self.passes.get(count, size)
        if found is None or found in self._whole:
            return found
        batch, rows, columns, channels = found.features.shape
        if not self.model.shows(rows, columns, channels):
            return None  # the host says what is wrong
        own, cells = own_memory(self.kernels.device), np.arange(rows * columns, dtype=np.int32)
        try:
            scorer = self.model.plain(cells, batch, own)
        except BackendError as error:
            self.passes.refuse(size, str(error))
            return None
        scores = self.kernels.device.empty((batch, rows * columns))
        self._whole[found] = _Whole(scorer, scores)
        return found


class DeviceVersions:
    """See `Versions`. Several may take turns; going back to one costs its tables again.

    Args:
        whole: gives the features of the tile, (1, H, W, c); None where the crop is all of it.
        tables: of a view of one window, about the frame.
        host: gives the same on the host, for crops that the engines were not made for.
    """

    def __init__(
        self,
        scoring: DeviceScoring,
        whole: Callable[[], DeviceArray] | None,
        box: Box,
        tables: ViewTables,
        host: Callable[[], Versions],
    ) -> None:
        self._scoring, self._whole, self._tables, self._box = scoring, whole, tables, box
        self._host = host
        self._cells = scoring.cell_numbers(box)
        self._correction: DeviceArray | None = None
        self._view: DeviceView | None = None
        self._scorer: tuple[int, DeviceScorer] | None = None

    def scores(self, windows: Float) -> Float:
        """See `Versions`."""
        # The frame goes first, once: what its features lack are those of its surroundings.
        more = int(self._whole is not None and self._correction is None)
        rows = np.concatenate([self._tables.view.base, windows]) if more else windows
        passes, size = self._scoring.passes, (self._box.height, self._box.width)
        found = passes.get(max(len(rows), _LEAST), size)
        if found is None:
            return self._host().scores(windows)
        try:
            prepared = self._prepared(found.batch)
        except BackendError as error:
            passes.refuse(size, str(error))
            return self._host().scores(windows)
        step = found.batch
        out = [
            self._part(found, rows[first : first + step], *prepared)
            for first in range(0, len(rows), step)
        ]
        return np.concatenate(out)[more:]

    def _part(
        self, found: FeaturePass, windows: Float, view: DeviceView, scorer: DeviceScorer
    ) -> Float:
        device = self._scoring.kernels.device
        memory = self._scoring.scratch
        view.project(placed(device, memory, "windows", windows), found.images)
        found.enqueue()
        if self._whole is not None:
            self._correct(found)
        scores = memory("scores", (found.batch, len(self._cells)), np.float32)
        scorer.enqueue(found.cells, scores=scores, cotangent=None)
        return np.asarray(device.to_host(front(scores, len(windows))), np.float32)

    def _prepared(self, batch: int) -> tuple[DeviceView, DeviceScorer]:
        """Tables and scorer in memory that another crop may have taken since.

        Raises: BackendError where the flow was not made for so many cells.
        """
        scoring = self._scoring
        device = scoring.kernels.device
        if scoring.current is not self or self._view is None:
            self._view, self._scorer = DeviceView(device, self._tables, scoring.scratch), None
            scoring.current = self
        if self._scorer is None or self._scorer[0] != batch:
            self._scorer = batch, scoring.model.plain(self._cells, batch, scoring.scratch)
        return self._view, self._scorer[1]

    def _correct(self, found: FeaturePass) -> None:
        """f(n) + f_whole(x) - f_crop(x); at first x itself is item 0."""
        device = self._scoring.kernels.device
        if self._correction is None:
            self._correction = self._learned(found)
        length = self._correction.size
        device.launch(
            "add_row", device.rows(found.batch, length), x=found.features, row=self._correction,
            batch=found.batch, length=length,
        )  # fmt: skip

    def _learned(self, found: FeaturePass) -> DeviceArray:
        assert self._whole is not None
        device, box, s = self._scoring.kernels.device, self._box, self._scoring.stride
        rows, columns, channels = found.features.shape[1:]
        whole, out = self._whole(), device.empty((rows, columns, channels))
        device.launch(
            "learn_surroundings", device.rows(1, out.size, 1), whole=whole,
            features=found.features, correction=out, top=box.top // s, left=box.left // s,
            width=whole.shape[2], rows=rows, columns=columns, channels=channels,
        )  # fmt: skip
        return out
