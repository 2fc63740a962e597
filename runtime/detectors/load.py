"""Open the detector of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Detector as Record
from unblemish.errors import BundleError, ShapeError
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.detectors.cflow import Cflow, flow_maps
from unblemish.runtime.detectors.crops import HostTiles, Tiles
from unblemish.runtime.detectors.padim import Padim
from unblemish.runtime.detectors.padim_low_rank import LowRankPadim
from unblemish.runtime.detectors.patchcore import PatchCore
from unblemish.runtime.detectors.protocol import FEATURES, IMAGE, CellModel, FeaturePrograms
from unblemish.runtime.solvers.protocol import Float

_BATCH = 4  # model images at once: more leave the caches


@dataclass(frozen=True)
class Detector:
    """Feature graphs and what was learned of normal features."""

    record: Record
    programs: FeaturePrograms
    model: CellModel

    frames_at_once: ClassVar[int] = 1  # more leave the caches

    def features(self, images: Float) -> Float:
        """Features (B, h, w, c) of images (B, C, H, W); valid until the next call."""
        return np.asarray(self.programs.plain.run({IMAGE: images})[FEATURES])

    def plain(self, images: Float) -> Float:
        """Anomaly maps of whole model images.

        Args:
            images: (B, C, H, W) float32 of the model's size.
        Returns: (B, H, W) float32: the distances (not squared) of the cells, interpolated between
            their centres and smoothed.
        """
        parts = [
            self._maps(np.ascontiguousarray(images[i : i + _BATCH]))
            for i in range(0, len(images), _BATCH)
        ]
        return np.concatenate(parts)

    def tiles(self, images: Float) -> Tiles:
        """The model images (T, C, h, w) of a frame, for maps and for scores of their crops."""
        return HostTiles(self, images)

    def tiles_of(self, frames: Sequence[Float]) -> list[Tiles]:
        """The same of several frames."""
        return [self.tiles(images) for images in frames]

    def cells(self, images: Float) -> Float:
        """Squared distances (B, h, w) of the cells of model images (B, C, H, W)."""
        return np.maximum(self.model.scores(self.features(images)), np.float32(0))

    def _maps(self, images: Float) -> Float:
        height, width = images.shape[2:]
        return np.stack([self.map_of(one, height, width) for one in self.cells(images)])

    def map_of(self, cells: Float, height: int, width: int) -> Float:
        """The anomaly map (H, W) of squared distances (h, w) of cells; see `plain`."""
        large = cv2.resize(np.sqrt(cells), (width, height), interpolation=cv2.INTER_LINEAR)
        sigma = self.record.smoothing_sigma
        return np.asarray(cv2.GaussianBlur(large, (0, 0), sigma) if sigma else large, np.float32)


def load_detector(bundle: Bundle, backend: Backend, kernels: Kernels | None = None) -> Detector:
    """Open graphs and statistics; the latter stay on disk until they are read.

    Args:
        kernels: for the distances; None for the fastest of this install.
    Raises: BundleError where a part is missing or does not fit; BackendError where an engine
        refuses a graph.
    """
    record = bundle.manifest.detector
    if record is None:
        raise BundleError(
            f"bundle {bundle.path} says method '{bundle.manifest.method}' and holds no detector. "
            "Make it again with: unblemish fit."
        )
    read = _MODELS.get(bundle.manifest.method)
    if read is None:
        raise BundleError(
            f"bundle {bundle.path}: this unblemish inspects with "
            f"{', '.join(_MODELS)}, not with '{bundle.manifest.method}'."
        )
    programs = FeaturePrograms(
        backend.program(str(bundle.graph("features"))),
        backend.pair(str(bundle.graph("features_forward")), str(bundle.graph("features_backward"))),
    )
    return Detector(record, programs, read(bundle, record, kernels or default_kernels(), backend))


def _padim(bundle: Bundle, record: Record, kernels: Kernels, backend: Backend) -> CellModel:
    if "basis" in record.statistics:
        return _low_rank_padim(bundle, record, kernels)
    mean, whitening = (_array(bundle, record, name) for name in ("mean", "whitening"))
    packed = mean.shape[1] * (mean.shape[1] + 1) // 2
    if mean.shape[1] != record.channels or whitening.shape != (len(mean), packed):
        raise BundleError(f"bundle {bundle.path}: PaDiM's statistics do not fit each other.")
    return Padim(mean, whitening, kernels)


def _low_rank_padim(bundle: Bundle, record: Record, kernels: Kernels) -> CellModel:
    names = ("mean", "basis", "inverse_variance")
    mean, basis, inverse = (_array(bundle, record, name) for name in names)
    fits = mean.shape == basis.shape[:2] and inverse.shape == mean.shape[:1]
    if basis.ndim != 3 or not fits or mean.shape[1] != record.channels:
        raise BundleError(f"bundle {bundle.path}: PaDiM's statistics do not fit each other.")
    return LowRankPadim(mean, basis, inverse, kernels)


def _patchcore(bundle: Bundle, record: Record, kernels: Kernels, backend: Backend) -> CellModel:
    bank = _array(bundle, record, "bank")
    if bank.ndim != 2 or bank.shape[1] != record.channels:
        raise BundleError(f"bundle {bundle.path}: PatchCore's bank has shape {bank.shape}.")
    return PatchCore(bank, bundle.manifest.f2pad.candidates, kernels)


def _cflow(bundle: Bundle, record: Record, kernels: Kernels, backend: Backend) -> CellModel:
    typical, p = _array(bundle, record, "typical"), bundle.manifest.preprocess
    shapes = [(one.channels, one.stride) for one in record.maps]
    rows, columns = p.height // record.stride, p.width // record.stride
    fits = bool(shapes) and sum(c for c, _ in shapes) == record.channels
    if not fits or any(s % record.stride for _, s in shapes):
        raise BundleError(f"bundle {bundle.path}: CFLOW-AD's maps do not fit each other.")
    try:
        maps = flow_maps(shapes, record.stride, rows, columns, typical)
    except ShapeError as error:
        raise BundleError(f"bundle {bundle.path}: {error} Fit it again.") from error
    return Cflow(
        backend.program(str(bundle.graph("flow"))),
        backend.pair(str(bundle.graph("flow_forward")), str(bundle.graph("flow_backward"))),
        maps,
        rows,
    )


def _array(bundle: Bundle, record: Record, name: str) -> Float:
    if name not in record.statistics:
        raise BundleError(f"bundle {bundle.path} has no statistics '{name}'. Fit it again.")
    path = bundle.file(record.statistics[name])
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle.path}: {path.name} cannot be read: {error}") from error
    if array.dtype != np.float32:
        raise BundleError(f"bundle {bundle.path}: {path.name} must be float32, is {array.dtype}.")
    return np.ascontiguousarray(array)


_MODELS: dict[str, Callable[[Bundle, Record, Kernels, Backend], CellModel]] = {
    "padim": _padim,
    "patchcore": _patchcore,
    "cflow": _cflow,
}
