"""Search with a detector: a frame in, what its features find unusual and the outline of it out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.errors import ConfigError
from unblemish.kernels import Kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.detectors.load import Detector, load_detector
from unblemish.runtime.found import Found
from unblemish.runtime.frames import from_unit, to_channels, to_unit, white_for
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.initial import wide_median
from unblemish.runtime.inspection import Inspection, Status
from unblemish.runtime.methods.outline import outline_score, relative_map
from unblemish.runtime.options import DETECTOR_REFINEMENTS, SearchOptions, check_refine
from unblemish.runtime.solvers.loop import Clock
from unblemish.runtime.solvers.protocol import Float


@dataclass(frozen=True)
class _Job:
    """One frame on its way: as given, as (H, W, C) in [0, 1], and its model images."""

    frame: NDArray[Any]
    unit: Float
    images: Float
    white: float | None


class FeatureSearch:
    """The search of a detector's bundle, with the interface of `Search`.

    The evidence for a defect is the peak of the detector's own map, whatever the refinement: so
    verdicts do not hang on outlines.

    >>> found = FeatureSearch(bundle)(frame)                               # doctest: +SKIP
    """

    frames_at_once = 1

    def __init__(
        self,
        bundle: Bundle,
        options: SearchOptions | None = None,
        *,
        kernels: Kernels | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.bundle = bundle
        self.options = options or SearchOptions()
        method = bundle.manifest.method
        self.refine = check_refine(self.options.refine or "initial", DETECTOR_REFINEMENTS, method)
        self._geometry = Geometry(bundle.manifest.preprocess)
        self._clock = clock
        backend = open_backend(self.options.backend, self.options.threads)
        self._detector: Detector = load_detector(bundle, backend)

    def __call__(
        self,
        frame: Any,
        *,
        lam: float | None = None,
        deadline_ms: float | None = None,
        previous: Inspection | Found | Float | None = None,
    ) -> Found:
        """Search one frame.

        Args:
            frame: see `to_unit`.
            lam: instead of the bundle's `outline_onset`.
            deadline_ms: checked to be positive; the one pass that there is takes its time.
            previous: not used, there is no latent.
        Raises: SourceError where the frame is not usable.
        """
        return self.many([frame], lam=lam, deadline_ms=deadline_ms)[0]

    def adopt(self, bundle: Bundle) -> None:
        """Go on with other settings of the same files, as calibration does while choosing."""
        self.bundle = bundle

    def reserve(self, pixels: int, seconds: float) -> None:
        """See `Search.reserve`; nothing here is cut short."""

    def many(
        self,
        frames: Sequence[Any],
        *,
        lam: float | None = None,
        deadline_ms: float | None = None,
        previous: Sequence[Inspection | Found | Float | None] | None = None,
    ) -> list[Found]:
        """Search several frames, one after the other."""
        if deadline_ms is not None and not deadline_ms > 0:
            raise ConfigError(f"deadline_ms must be positive; got {deadline_ms}.")
        if lam is not None and not (np.isfinite(lam) and lam > 0):
            raise ConfigError(f"lam must be a positive number; got {lam}.")
        return [self._search(frame, lam) for frame in frames]

    def _search(self, frame: Any, onset: float | None) -> Found:
        began = self._clock()
        job = self._prepare(frame)
        prepared = self._clock()
        maps = self._detector.plain(job.images)
        plain = self._geometry.to_native(maps[:, None], job.unit.shape)[:, :, 0]
        broken = ~np.isfinite(plain)
        detected = self._clock()
        restored, score = self._outlined(job, np.where(broken, 0, plain), onset)
        score[broken] = np.float32(np.finfo(np.float32).max)
        done = self._clock()
        return Found(
            restored=from_unit(restored, job.frame.dtype, white=job.white),
            score=score,
            mask=(score > 0).astype(np.float32),
            z=np.zeros((len(job.images), 0), np.float32),
            status=Status.NON_FINITE if broken.any() else Status.PLAIN,
            steps=0,
            objective=0.0,
            evidence=float(maps.max()),
            timings={
                "preprocess": 1000 * (prepared - began),
                "detect": 1000 * (detected - prepared),
                "outline": 1000 * (done - detected),
                "total": 1000 * (done - began),
            },
        )

    def _prepare(self, frame: Any) -> _Job:
        preprocess = self.bundle.manifest.preprocess
        white = white_for(frame, self.options.white, preprocess.white)
        unit = to_unit(frame, white=white)
        images = self._geometry.unit_to_model(unit)
        return _Job(frame, to_channels(unit, preprocess.channels), images, white)

    def _outlined(self, job: _Job, plain: Float, onset: float | None) -> tuple[Float, Float]:
        """Restored image (H, W, C) in [0, 1], and the score map."""
        if self.refine == "none":
            return job.unit, np.array(plain, np.float32)
        manifest = self.bundle.manifest
        settings, record = manifest.f2pad, manifest.detector or self._detector.record
        restored = wide_median(job.unit)
        score = outline_score(
            job.unit,
            restored,
            relative_map(plain, record.normal_peak),
            floor=settings.outline_floor,
            onset=settings.outline_onset if onset is None else onset,
            polarity=manifest.rgi.polarity,
        )
        return restored, score
