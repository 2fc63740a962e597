"""Search with an autoencoder: a frame in, its projection on what normal parts look like out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import EnergySettings
from unblemish.errors import BundleError, ShapeError
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.found import Found
from unblemish.runtime.frames import from_unit
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.inspection import Inspection, Status
from unblemish.runtime.jobs import Job, check_search, prepare_job
from unblemish.runtime.methods.autoencoder import AutoencoderEngine
from unblemish.runtime.methods.energy import EnergyMethod, Projected
from unblemish.runtime.options import AUTOENCODER_REFINEMENTS, SearchOptions, check_refine
from unblemish.runtime.restore import mean_trace, score_of, worst
from unblemish.runtime.solvers.loop import Clock, share_of
from unblemish.runtime.solvers.protocol import Float

_BATCH = 8  # images of a pass
_INPAINTING_STEPS = 100


class EnergySearch:
    """The search of an autoencoder's bundle, with the interface of `Search`.

    >>> found = EnergySearch(bundle)(frame)                                # doctest: +SKIP
    """

    frames_at_once = _BATCH

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
        calibration = bundle.manifest.calibration
        asked = self.options.refine or (calibration and calibration.refine) or "energy"
        self.refine = check_refine(asked, AUTOENCODER_REFINEMENTS, bundle.manifest.method)
        self._geometry = Geometry(bundle.manifest.preprocess)
        self._clock = clock
        self._kernels = kernels or default_kernels(self.options.threads)
        backend = open_backend(self.options.backend, self.options.threads, bundle=bundle)
        self._engine = load_autoencoder(bundle, backend)

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
            lam: instead of the bundle's weight of the l1 distance.
            deadline_ms: time for everything; the best so far is returned.
            previous: not used: the search begins at the frame.
        Raises: SourceError where the frame is not usable.
        """
        return self.many([frame], lam=lam, deadline_ms=deadline_ms)[0]

    def reserve(self, pixels: int, seconds: float) -> None:
        """See `Search.reserve`: what follows takes no time to speak of."""

    def many(
        self,
        frames: Sequence[Any],
        *,
        lam: float | None = None,
        deadline_ms: float | None = None,
        previous: Sequence[Inspection | Found | Float | None] | None = None,
    ) -> list[Found]:
        """Search several frames together; the deadline is for all of them."""
        began = self._clock()
        check_search(lam, deadline_ms)
        jobs = [self._prepare(frame) for frame in frames]
        prepared = self._clock()
        deadline = None if deadline_ms is None else began + deadline_ms / 1000
        watch = self._engine.watch
        watch.seconds.clear()
        projected = self._solve([image for job in jobs for image in job.images], lam, deadline)
        solved = self._clock()
        found = self._restore(jobs, projected)
        done = self._clock()
        timings = {name: 1000 * seconds for name, seconds in watch.seconds.items()} | {
            "preprocess": 1000 * (prepared - began),
            "search": 1000 * (solved - prepared),
            "restore": 1000 * (done - solved),
            "total": 1000 * (done - began),
        }
        return [replace(one, timings=timings) for one in found]

    def inpaint(
        self, frame: Any, mask: NDArray[np.bool_], *, deadline_ms: float | None = None
    ) -> NDArray[Any]:
        """The frame with the pixels of the mask (H, W) replaced, eq. (7); the others stay.

        There the energy is L_r alone: what the pixels held counts for nothing, except as a start.
        Returns: (H, W) or (H, W, C), dtype and range of the frame.
        Raises: SourceError where the frame is not usable; ShapeError where the mask does not fit.
        """
        job = self._prepare(frame)
        hole = np.asarray(mask, np.bool_)
        if hole.shape != job.unit.shape[:2]:
            raise ShapeError(
                f"the mask must have the frame's size {job.unit.shape[:2]}; it has {hole.shape}."
            )
        deadline = None if deadline_ms is None else self._clock() + deadline_ms / 1000
        free = self._geometry.unit_to_model(hole[:, :, None].astype(np.float32))[:, :1]
        free = (self._geometry.to_unit_range(free) > 0).astype(np.float32)
        method = self._method(0.0)

        def fill(rows: slice, until: float | None) -> Projected:
            images, where = job.images[rows], np.ascontiguousarray(free[rows])
            return method.solve(
                images, free=where, max_steps=_INPAINTING_STEPS, deadline=until, clock=self._clock
            )

        filled = self._batches(len(job.images), deadline, fill)
        made = self._geometry.to_native(filled.images, job.unit.shape)
        native = np.where(hole[:, :, None], made, self._geometry.to_intensity(job.unit))
        unit = np.clip(self._geometry.to_unit_range(native), 0, 1)
        return from_unit(unit, job.frame.dtype, white=job.white)

    def _prepare(self, frame: Any) -> Job:
        return prepare_job(frame, self._geometry, self.options.white)

    def _solve(
        self, images: Sequence[Float], lam: float | None, deadline: float | None
    ) -> Projected:
        method = self._method(lam)

        def project(rows: slice, until: float | None) -> Projected:
            return self._batch(method, np.stack(images[rows]), until)

        return self._batches(len(images), deadline, project)

    def _batches(
        self,
        count: int,
        deadline: float | None,
        work: Callable[[slice, float | None], Projected],
    ) -> Projected:
        """Work on `count` images in batches; later batches share the time that is left."""
        edges = range(0, count, _BATCH)
        return Projected.joined([
            work(slice(first, first + _BATCH), share_of(deadline, len(edges) - n, self._clock))
            for n, first in enumerate(edges)
        ])  # fmt: skip

    def _batch(self, method: EnergyMethod, images: Float, deadline: float | None) -> Projected:
        if self.refine == "energy":
            steps = self.options.max_steps
            return method.solve(images, max_steps=steps, deadline=deadline, clock=self._clock)
        count = len(images)
        maps = None if self.refine == "none" else method.scores(images, self.refine)
        return Projected(
            method.reconstruct(images), np.zeros(count), (Status.PLAIN,) * count,
            np.ones(count, np.intp), (np.zeros(0),) * count, maps,
        )  # fmt: skip

    def _method(self, lam: float | None) -> EnergyMethod:
        return energy_method(self.bundle, self._engine, self._kernels, self.options.schedule, lam)

    def _restore(self, jobs: Sequence[Job], projected: Projected) -> list[Found]:
        found, first = [], 0
        for job in jobs:
            rows = slice(first, first + len(job.images))
            first = rows.stop
            found.append(self._found(job, projected, rows))
        return found

    def _found(self, job: Job, projected: Projected, rows: slice) -> Found:
        """Bring what changed to the frame's geometry: what did not keeps the camera's detail."""
        geometry, p = self._geometry, self.bundle.manifest.preprocess
        images = projected.images[rows]
        native = geometry.to_intensity(job.unit)
        change = geometry.to_native(images - job.images, job.unit.shape)
        restored = np.clip(native + change, p.low, p.high)
        maps = None if projected.maps is None else projected.maps[rows]
        score = self._score(job, images, change, maps)
        broken = ~np.isfinite(score)
        score[broken] = p.high - p.low
        return Found(
            restored=from_unit(geometry.to_unit_range(restored), job.frame.dtype, white=job.white),
            score=score,
            mask=np.clip(score / np.float32(p.high - p.low), 0, 1),
            z=np.zeros((len(images), 0), np.float32),
            status=worst(projected.status[rows]),
            steps=int(projected.steps[rows].max()),
            objective=float(projected.value[rows].mean()),
            trace=mean_trace(projected.trace[rows]),
        )

    def _score(self, job: Job, images: Float, change: Float, maps: Float | None) -> Float:
        """(H, W): the maps given; DSSIM of model images and projection; or what changed."""
        if maps is not None:
            return self._native(maps, job)
        settings, p = energy_settings(self.bundle), self.bundle.manifest.preprocess
        if settings.score == "l2":
            return score_of(-change, self.bundle.manifest.rgi.polarity)
        maps = np.empty((len(images), 1, *images.shape[2:]), np.float32)
        self._kernels.dssim(
            job.images, np.ascontiguousarray(images), np.ones(len(images), np.float32),
            data_range=p.high - p.low, dissimilarity=maps, direct=None, cotangent=None,
            objective=np.empty(len(images)),
        )  # fmt: skip
        return self._native(maps, job)

    def _native(self, maps: Float, job: Job) -> Float:
        return np.ascontiguousarray(self._geometry.to_native(maps, job.unit.shape)[:, :, 0])


def load_autoencoder(bundle: Bundle, backend: Backend) -> AutoencoderEngine:
    """Load the reconstruction and its gradient. Raises: BundleError, BackendError."""
    return AutoencoderEngine(
        backend.pair(
            str(bundle.graph("reconstruct_forward")), str(bundle.graph("reconstruct_backward"))
        )
    )


def energy_method(
    bundle: Bundle,
    engine: AutoencoderEngine,
    kernels: Kernels,
    schedule: str,
    lam: float | None = None,
) -> EnergyMethod:
    """The method of a bundle; `lam` None for its own. Raises: BundleError without settings."""
    p, settings = bundle.manifest.preprocess, energy_settings(bundle)
    if lam is not None:
        settings = settings.model_copy(update={"lam": lam})
    return EnergyMethod(engine, kernels, settings, p.low, p.high, schedule)


def energy_settings(bundle: Bundle) -> EnergySettings:
    """The settings of the search. Raises: BundleError where the bundle has none."""
    settings = bundle.manifest.energy
    if settings is None:
        raise BundleError(
            f"bundle {bundle.manifest.name} has no settings of the energy. Export it again."
        )
    return settings
