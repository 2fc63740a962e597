"""A detector whose features stay on the GPU: images go up, the scores of cells come down."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unblemish.bundle import Bundle
from unblemish.errors import BackendError
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.crops import Box
from unblemish.runtime.detectors.cflow import Cflow
from unblemish.runtime.detectors.crops import HostTiles, Tiles, Versions
from unblemish.runtime.detectors.load import Detector
from unblemish.runtime.detectors.padim import Padim
from unblemish.runtime.detectors.padim_low_rank import LowRankPadim
from unblemish.runtime.detectors.patchcore import PatchCore
from unblemish.runtime.device.detectors.cell_scores import (
    BankModel,
    DeviceModel,
    GaussianModel,
    beyond_limits,
)
from unblemish.runtime.device.detectors.features import FeaturePasses
from unblemish.runtime.device.detectors.flow_scores import FlowModel, FlowPaths
from unblemish.runtime.device.detectors.projection import ViewTables
from unblemish.runtime.device.detectors.scoring import DeviceScoring, DeviceVersions, Seen
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.solvers.protocol import Float

if TYPE_CHECKING:
    from unblemish.runtime.methods.decomposition import View

_LOG = logging.getLogger("unblemish")


@dataclass(frozen=True)
class DeviceDetector(Detector):
    """See `Detector`. What the engines were not made for is scored on the host."""

    scoring: DeviceScoring

    frames_at_once: ClassVar[int] = 16

    def plain(self, images: Float) -> Float:
        """See `Detector.plain`."""
        return self._maps(images)

    def cells(self, images: Float) -> Float:
        """See `Detector.cells`."""
        seen = self.scoring.see(images)
        return super().cells(images) if seen is None else np.maximum(seen.cells, np.float32(0))

    def tiles(self, images: Float) -> Tiles:
        """See `Detector.tiles`."""
        return self.tiles_of([images])[0]

    def tiles_of(self, frames: Sequence[Float]) -> list[Tiles]:
        """See `Detector.tiles_of`: all are one batch."""
        seen = self.scoring.see(np.concatenate(frames) if len(frames) > 1 else frames[0])
        if seen is None:
            return [HostTiles(self, images) for images in frames]
        ends = np.cumsum([len(images) for images in frames])
        return [
            DeviceTiles(self, images, seen, int(end) - len(images))
            for images, end in zip(frames, ends, strict=True)
        ]


class DeviceTiles(HostTiles):
    """See `Tiles`; crops for which there is no engine are scored on the host.

    Args:
        images: (T, C, h, w), of those seen together number `first` and on.
    """

    def __init__(self, detector: DeviceDetector, images: Float, seen: Seen, first: int) -> None:
        super().__init__(detector, images)
        self._scoring, self._seen, self._first = detector.scoring, seen, first

    def maps(self) -> Float:
        """See `Tiles`."""
        height, width = self._images.shape[2:]
        mine = self._seen.cells[self._first : self._first + len(self._images)]
        cells = np.maximum(mine, np.float32(0))
        return np.stack([self._detector.map_of(one, height, width) for one in cells])

    def versions(self, tile: int, box: Box, view: View) -> Versions:
        """See `Tiles`."""
        whole = None
        if (box.height, box.width) != self._images.shape[2:]:
            whole = partial(self._whole, tile)
        host = partial(super().versions, tile, box, view)
        return DeviceVersions(self._scoring, whole, box, ViewTables.of(view), host)

    def _whole(self, tile: int) -> DeviceArray:
        """Features (1, h, w, c) of a model image, computed again where they are gone."""
        image = self._images[tile : tile + 1]
        return self._scoring.features(image, self._seen, self._first + tile)


def on_device(bundle: Bundle, detector: Detector, engines: DeviceEngines) -> Detector:
    """The detector with its features on the device, or as it is where it cannot be there.

    Statistics and bank are copied once. One line of the log says what stays on the host, and why.
    """
    reason = beyond_limits(detector.model)
    if reason is None:
        try:
            return _placed(bundle, detector, engines)
        except BackendError as error:
            reason = str(error)
    _LOG.warning("the detector scores on the host: %s", reason)
    return detector


def _placed(bundle: Bundle, detector: Detector, engines: DeviceEngines) -> DeviceDetector:
    """Raises: BackendError where a graph cannot run on the device."""
    path, p = str(bundle.graph("features")), bundle.manifest.preprocess
    engines.graph(path)
    passes = FeaturePasses(engines, path, p.channels)
    model, stride = _model(bundle, detector, engines), detector.record.stride
    engines.kernels.synchronise()  # what the copies refuse shows here
    scoring = DeviceScoring(engines.kernels, passes, model, stride=stride, width=p.width)
    return DeviceDetector(detector.record, detector.programs, detector.model, scoring)


def _model(bundle: Bundle, detector: Detector, engines: DeviceEngines) -> DeviceModel:
    model = detector.model
    if isinstance(model, PatchCore):
        return BankModel(engines.kernels, model)
    if isinstance(model, Padim | LowRankPadim):
        return GaussianModel(engines.kernels, model)
    if not isinstance(model, Cflow):
        raise BackendError(f"no kernel scores a {type(model).__name__}")
    paths = FlowPaths(*(str(bundle.graph(r)) for r in ("flow", "flow_forward", "flow_backward")))
    engines.graph(paths.plain)
    return FlowModel(engines, model, paths)
