"""Search with a detector: a frame in, what its features find unusual and the outline of it out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.errors import ConfigError
from unblemish.kernels import Kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.detectors.crops import Tiles
from unblemish.runtime.detectors.load import Detector, load_detector
from unblemish.runtime.found import Found
from unblemish.runtime.frames import from_unit
from unblemish.runtime.holes import open_hole
from unblemish.runtime.initial import wide_median
from unblemish.runtime.inpainting import Inpainter, load_inpainter
from unblemish.runtime.inspection import Inspection, Status
from unblemish.runtime.jobs import Job, check_search, milliseconds, prepare_job
from unblemish.runtime.methods.colour import colour_maps
from unblemish.runtime.methods.decomposition import in_units
from unblemish.runtime.methods.f2pad import Elsewhere, F2pad
from unblemish.runtime.methods.outline import outline_score, refined_score, relative_map
from unblemish.runtime.methods.refined import Refined, unrefined
from unblemish.runtime.options import DETECTOR_REFINEMENTS, SearchOptions, check_refine
from unblemish.runtime.placement import geometry_at, place
from unblemish.runtime.solvers.loop import Clock, share_of
from unblemish.runtime.solvers.protocol import Float

_USUAL = 0.95  # share of the cells


@dataclass(frozen=True)
class Survey:
    """How far a frame reaches.

    Args:
        peak: of the detector's map. level: squared distance that 1 in 20 cells exceeds.
        colours: largest of `colour_maps`, one per mixture.
    """

    peak: float
    level: float
    colours: tuple[float, ...]


@dataclass(frozen=True)
class _Look:
    """One frame under the detector; seconds: spent on it so far."""

    job: Job
    seen: Tiles
    prepare: float
    detect: float


class FeatureSearch:
    """The search of a detector's bundle, with the interface of `Search`.

    The evidence for a defect is the peak of the detector's own map, whatever the refinement: so
    verdicts do not hang on outlines.

    >>> found = FeatureSearch(bundle)(frame)                               # doctest: +SKIP
    """

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
        calibration = bundle.manifest.calibration
        calibrated = None if calibration is None else calibration.refine
        asked = self.options.refine or calibrated or "f2pad"
        self.refine = check_refine(asked, DETECTOR_REFINEMENTS, method)
        self._clock = clock
        self._backend = backend = open_backend(
            self.options.backend, self.options.threads, bundle=bundle
        )
        self._engines, self._kernels = place(backend, kernels, self.options.threads)
        self._geometry = geometry_at(self._engines, bundle.manifest.preprocess)
        self._detector: Detector = self._loaded()
        self._f2pad: F2pad | None = None
        self._filler: Inpainter | None = None

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
            deadline_ms: time for everything; the detector's pass is never cut short.
            previous: not used, there is no latent.
        Raises: SourceError where the frame is not usable.
        """
        return self.many([frame], lam=lam, deadline_ms=deadline_ms)[0]

    def adopt(self, bundle: Bundle) -> None:
        """Go on with other settings of the same files, as calibration does while choosing."""
        record = bundle.manifest.detector
        if record is not None:
            self._detector = replace(self._detector, record=record)
        self.bundle, self._f2pad = bundle, None

    def detect(self, frame: Any) -> Found:
        """The detector's own map of a frame, whatever the refinement. See `__call__`."""
        (look,) = self._look([frame])
        return self._search(look, None, None, "none")

    def inpaint(
        self, frame: Any, mask: NDArray[Any], *, deadline_ms: float | None = None
    ) -> NDArray[Any]:
        """The frame with the pixels of the mask (H, W) replaced by the bundle's own inpainter.

        Args:
            deadline_ms: a single pass is never cut short.
        Returns: as the frame, which stays bit by bit outside of the mask.
        Raises: ConfigError where the bundle has no inpainter; SourceError, ShapeError where frame
        or mask are not usable.
        """
        check_search(None, deadline_ms)
        filler = self._inpainter()
        if filler is None:
            raise ConfigError(
                f"bundle {self.bundle.manifest.name} is a detector's and holds no inpainter. Fit "
                "it with --inpainter, or use the bundle of an autoencoder or generator."
            )
        holed = open_hole(frame, mask, self._geometry, self.options.white)
        return holed.with_unit(filler(holed.unit, holed.hole))

    def survey(self, frame: Any) -> Survey:
        """What calibration learns of a normal frame."""
        job = self._prepare(frame)
        cells = np.concatenate([self._detector.cells(image[None]) for image in job.images])
        size, preprocess = job.images.shape[2:], self.bundle.manifest.preprocess
        priors = [in_units(mixture) for mixture in self._detector.record.mixtures]
        return Survey(
            max(float(self._detector.map_of(one, *size).max()) for one in cells),
            float(np.quantile(cells, _USUAL)),
            tuple(float(colour_maps(job.images, p, preprocess).max()) for p in priors),
        )

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
        """Search several frames; some are shown to the detector together, see `frames_at_once`."""
        check_search(lam, deadline_ms)
        until = None if deadline_ms is None else self._clock() + deadline_ms / 1000
        found: list[Found] = []
        for first in range(0, len(frames), self.frames_at_once):
            for look in self._look(frames[first : first + self.frames_at_once]):
                share = share_of(until, len(frames) - len(found), self._clock)
                found.append(self._search(look, lam, share, self.refine))
        return found

    @property
    def frames_at_once(self) -> int:
        """Frames that the detector takes together; of one that is cut into tiles it takes those."""
        tiles = self.bundle.manifest.preprocess.geometry == "tiles"
        return 1 if tiles else self._detector.frames_at_once

    def _look(self, frames: Sequence[Any]) -> list[_Look]:
        began = self._clock()
        jobs = [self._prepare(frame) for frame in frames]
        prepared = self._clock()
        seen = self._detector.tiles_of([job.images for job in jobs])
        detected = self._clock()
        each = (prepared - began) / len(frames), (detected - prepared) / len(frames)
        return [_Look(job, tiles, *each) for job, tiles in zip(jobs, seen, strict=True)]

    def _search(
        self, look: _Look, onset: float | None, deadline: float | None, refine: str
    ) -> Found:
        began = self._clock()
        job, seen = look.job, look.seen
        maps = seen.maps()
        plain = self._geometry.to_native(maps[:, None], job.unit.shape)[:, :, 0]
        broken = ~np.isfinite(plain)
        detected = self._clock()
        if refine == "f2pad" and not broken.any():
            refined = self._refiner().refine(
                job.unit, job.images, maps, deadline, self._clock, seen=seen
            )
            score, mask = self._scored(job, plain, refined, onset), refined.mask
        else:
            refined = self._outlined(job, np.where(broken, 0, plain), onset, refine)
            score = np.array(refined.residual)
            mask = score > 0
        score[broken] = np.float32(np.finfo(np.float32).max)
        done = self._clock()
        return Found(
            restored=from_unit(refined.restored, job.frame.dtype, white=job.white),
            score=score,
            mask=mask.astype(np.float32),
            z=np.zeros((len(job.images), 0), np.float32),
            status=Status.NON_FINITE if broken.any() else refined.status,
            steps=refined.steps,
            objective=refined.objective,
            trace=refined.trace,
            evidence=float(maps.max()),
            kept_plain=refined.kept_plain,
            timings=milliseconds(
                {},
                preprocess=look.prepare,
                detect=look.detect + detected - began,
                outline=done - detected,
                **refined.seconds,
                total=look.prepare + look.detect + done - began,
            ),
        )

    def _loaded(self) -> Detector:
        """The detector, its features on the device where the engines are there."""
        detector = load_detector(self.bundle, self._backend, self._kernels)
        if self._engines is None:
            return detector
        from unblemish.runtime.device.detectors.detector import on_device

        return on_device(self.bundle, detector, self._engines)

    def _prepare(self, frame: Any) -> Job:
        return prepare_job(frame, self._geometry, self.options.white)

    def _refiner(self) -> F2pad:
        if self._f2pad is None:
            self._f2pad = F2pad(
                self.bundle, self._detector, self._kernels, schedule=self.options.schedule,
                inpainter=self._inpainter(), device=self._descents(),
            )  # fmt: skip
        return self._f2pad

    def _descents(self) -> Elsewhere | None:
        """F2PAD's descents on the device, where the detector is there."""
        if self._engines is None:
            return None
        from unblemish.runtime.device.detectors.detector import DeviceDetector
        from unblemish.runtime.device.f2pad import F2padOnDevice

        if not isinstance(self._detector, DeviceDetector):
            return None
        return partial(F2padOnDevice, self._engines, self.bundle, self._detector)

    def _inpainter(self) -> Inpainter | None:
        """The bundle's own, opened once."""
        if self._filler is None:
            self._filler = load_inpainter(self.bundle, self._backend)
        return self._filler

    def _scored(self, job: Job, plain: Float, refined: Refined, onset: float | None) -> Float:
        """The score of a refined frame: its mask where that is to be trusted."""
        manifest = self.bundle.manifest
        settings, record = manifest.f2pad, manifest.detector or self._detector.record
        return refined_score(
            job.unit,
            wide_median(job.unit),
            relative_map(plain, record.normal_peak),
            refined,
            floor=settings.outline_floor,
            onset=settings.outline_onset if onset is None else onset,
            polarity=manifest.rgi.polarity,
        )

    def _outlined(self, job: Job, plain: Float, onset: float | None, refine: str) -> Refined:
        """The detector's own map, or the outline by the first guess of the normal image."""
        if refine == "none":
            return unrefined(job.unit, np.array(plain, np.float32))
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
        return unrefined(restored, score)
