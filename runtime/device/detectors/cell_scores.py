"""What the detectors learned of normal features, on the device; see `detectors.protocol`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.feature_terms import MOST_CHANNELS, MOST_DIRECTIONS
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.detectors.padim import Padim
from unblemish.runtime.detectors.padim_low_rank import LowRankPadim
from unblemish.runtime.detectors.patchcore import PatchCore
from unblemish.runtime.detectors.protocol import Cells
from unblemish.runtime.device.memory import Memory, placed, shaped


class DeviceScorer(Protocol):
    """Scores of B images of L cells each, all of which count."""

    @property
    def capturable(self) -> bool:
        """Whether `enqueue` may be recorded."""

    def begin(self, features: DeviceArray) -> None:
        """A search starts at these features: PatchCore takes its candidates there."""

    def enqueue(
        self, features: DeviceArray, *, scores: DeviceArray, cotangent: DeviceArray | None
    ) -> None:
        """Put on the stream: squared distances (B, L) of features (B, L, c), and their slope.

        Args:
            cotangent: as `features`; only of a scorer made for it, else None.
        """


class DeviceModel(Protocol):
    """What was learned, copied to the device once."""

    def shows(self, rows: int, columns: int, channels: int) -> bool:
        """Whether model images of so many cells are what was learned."""

    def plain(self, cells: Cells, batch: int, memory: Memory) -> DeviceScorer:
        """Exact scores of `batch` images that show the cells (L,), without slopes."""

    def scorer(self, cells: Cells, batch: int, memory: Memory) -> DeviceScorer:
        """Scores and slopes for a search; see `CellModel.scorer`."""


class GaussianModel:
    """PaDiM, with whole covariances or few directions."""

    def __init__(self, kernels: CudaKernels, model: Padim | LowRankPadim) -> None:
        self._device = kernels.device
        self._grid: tuple[int, ...] = model.mean.shape
        on = kernels.device.to_device
        if isinstance(model, Padim):
            held = {"mean": on(model.mean), "whitening": on(model.whitening)}
            self._score: Callable[..., None] = partial(kernels.mahalanobis, **held)
        else:
            held = {"mean": on(model.mean), "basis": on(model.basis)}
            held["inverse_variance"] = on(model.inverse_variance)
            self._score = partial(kernels.mahalanobis_low_rank, **held)

    def shows(self, rows: int, columns: int, channels: int) -> bool:
        """See `DeviceModel`."""
        return (rows * columns, channels) == self._grid

    def plain(self, cells: Cells, batch: int, memory: Memory) -> GaussianScorer:
        """See `DeviceModel`."""
        places = np.broadcast_to(cells, (batch, len(cells)))
        return GaussianScorer(self._score, placed(self._device, memory, "places", places))

    scorer = plain


@dataclass(frozen=True)
class GaussianScorer:
    """See `DeviceScorer`. places: (B, L) int32."""

    score: Callable[..., None]
    places: DeviceArray
    capturable: bool = True

    def begin(self, features: DeviceArray) -> None:
        """See `DeviceScorer`; places do not depend on the features."""

    def enqueue(
        self, features: DeviceArray, *, scores: DeviceArray, cotangent: DeviceArray | None
    ) -> None:
        """See `DeviceScorer`."""
        self.score(features, cells=self.places, scores=scores, cotangent=cotangent)


class BankModel:
    """PatchCore."""

    def __init__(self, kernels: CudaKernels, model: PatchCore) -> None:
        self.kernels, self.channels = kernels, int(model.bank.shape[1])
        self.candidates = min(model.candidates, len(model.bank))
        self.bank, self.norms = map(kernels.device.to_device, (model.bank, model.norms))

    def shows(self, rows: int, columns: int, channels: int) -> bool:
        """See `DeviceModel`; places do not matter."""
        return channels == self.channels

    def plain(self, cells: Cells, batch: int, memory: Memory) -> NearestScorer:
        """See `DeviceModel`."""
        return NearestScorer(self)

    def scorer(self, cells: Cells, batch: int, memory: Memory) -> CandidateScorer:
        """See `DeviceModel`."""
        shape = batch, len(cells), self.candidates
        return CandidateScorer(
            self, memory("candidates", shape, np.int32), memory("taken", shape[:2], np.int32)
        )

    def nearest(self, features: DeviceArray, index: DeviceArray, distances: DeviceArray) -> None:
        """Put on the stream: the rows of the bank nearest to every cell, see `top_candidates`."""
        count = features.size // self.channels
        k = index.size // count
        self.kernels.top_candidates(
            shaped(features, (count, self.channels)), self.bank, index=shaped(index, (count, k)),
            distances=shaped(distances, (count, k)), norms=self.norms,
        )  # fmt: skip


@dataclass(frozen=True)
class NearestScorer:
    """See `DeviceScorer`: over the whole bank."""

    model: BankModel
    capturable: bool = True

    def begin(self, features: DeviceArray) -> None:
        """See `DeviceScorer`; nothing is prepared."""

    def enqueue(
        self, features: DeviceArray, *, scores: DeviceArray, cotangent: DeviceArray | None
    ) -> None:
        """See `DeviceScorer`."""
        index = self.model.kernels.device.scratch("nearest", scores.shape, np.int32)
        self.model.nearest(features, index, scores)


@dataclass(frozen=True)
class CandidateScorer:
    """See `DeviceScorer`. candidates: (B, L, k) rows of the bank. taken: (B, L)."""

    model: BankModel
    candidates: DeviceArray
    taken: DeviceArray
    capturable: bool = True

    def begin(self, features: DeviceArray) -> None:
        """See `DeviceScorer`."""
        device = self.model.kernels.device
        distances = device.scratch("distances", self.candidates.shape, np.float32)
        self.model.nearest(features, self.candidates, distances)

    def enqueue(
        self, features: DeviceArray, *, scores: DeviceArray, cotangent: DeviceArray | None
    ) -> None:
        """See `DeviceScorer`."""
        self.model.kernels.nearest_candidate(
            features, self.model.bank, self.candidates, scores=scores, cotangent=cotangent,
            chosen=self.taken,
        )  # fmt: skip


def beyond_limits(model: Any) -> str | None:
    """Why the kernels cannot score a detector, or None."""
    if isinstance(model, Padim | LowRankPadim) and model.mean.shape[1] > MOST_CHANNELS:
        return f"{model.mean.shape[1]} channels, the kernel takes {MOST_CHANNELS}"
    if isinstance(model, LowRankPadim) and model.basis.shape[2] > MOST_DIRECTIONS:
        return f"{model.basis.shape[2]} directions, the kernel takes {MOST_DIRECTIONS}"
    return None


def tiled(rows: NDArray[Any], batch: int, step: int = 0) -> NDArray[Any]:
    """`rows` (n,) once for every item, each time `step` more, (batch * n,)."""
    found = rows[None] + step * np.arange(batch, dtype=rows.dtype)[:, None]
    return np.asarray(found.reshape(-1), rows.dtype)
