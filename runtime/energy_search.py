"""Search with an autoencoder: a frame in, its projection on what normal parts look like out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.kernels import Kernels
from unblemish.runtime.autoencoders import (
    energy_method,
    energy_settings,
    latent_method,
    load_autoencoder,
    load_code_engines,
)
from unblemish.runtime.backends import open_backend
from unblemish.runtime.found import Found
from unblemish.runtime.frames import from_unit
from unblemish.runtime.holes import open_hole
from unblemish.runtime.inspection import Inspection, Status
from unblemish.runtime.jobs import Job, check_search, milliseconds, prepare_job
from unblemish.runtime.methods.energy import EnergyMethod, Projected
from unblemish.runtime.methods.energy_scores import SCORE_KINDS
from unblemish.runtime.methods.latent import LatentMethod
from unblemish.runtime.options import AUTOENCODER_REFINEMENTS, SearchOptions, check_refine
from unblemish.runtime.placement import geometry_at, place
from unblemish.runtime.restore import mean_trace, score_of, worst
from unblemish.runtime.solvers.loop import Clock, share_of
from unblemish.runtime.solvers.protocol import Float

if TYPE_CHECKING:
    from unblemish.runtime.device.energy import EnergyOnDevice

_BATCH = 8  # images of a pass


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
        self._clock = clock
        backend = open_backend(self.options.backend, self.options.threads, bundle=bundle)
        engines, self._kernels = place(backend, kernels, self.options.threads)
        self._geometry = geometry_at(engines, bundle.manifest.preprocess)
        self._device: EnergyOnDevice | None = None
        if engines is not None:
            from unblemish.runtime.device.energy import EnergyOnDevice

            self._device = EnergyOnDevice(engines, bundle)
        maps = self.refine in SCORE_KINDS and self.refine != "error"
        slopes = maps or self.options.schedule == "paper"
        self._engine = load_autoencoder(bundle, backend, gradient=slopes)
        self._code: LatentMethod | None = None
        if self.refine == "latent":
            code = load_code_engines(bundle, backend)
            self._code = latent_method(bundle, code, self._kernels, self.options.schedule, engines)
            code.decoder.watch = self._engine.watch

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
            lam: instead of the bundle's weight of the l1 distance; where the code is searched,
                instead of that of -log p(z).
            deadline_ms: time for everything; the best so far is returned.
            previous: not used: the search begins at the frame, or at its code.
        Raises: SourceError where the frame is not usable.
        """
        return self.many([frame], lam=lam, deadline_ms=deadline_ms)[0]

    def adopt(self, bundle: Bundle) -> None:
        """Go on with other settings of the same files, as calibration does while choosing."""
        self.bundle = bundle

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
        timings = milliseconds(
            watch.seconds, preprocess=prepared - began, search=solved - prepared,
            restore=done - solved, total=done - began,
        )  # fmt: skip
        return [replace(one, timings=timings) for one in found]

    def inpaint(
        self, frame: Any, mask: NDArray[Any], *, deadline_ms: float | None = None
    ) -> NDArray[Any]:
        """The frame with the pixels of the mask (H, W) replaced; the others stay, bit by bit.

        What they held does not count; with the paper's schedule (eq. 7) it is where the descent
        begins.
        Returns: as the frame.
        Raises: SourceError where the frame is not usable; ShapeError where the mask does not fit.
        """
        check_search(None, deadline_ms)
        deadline = None if deadline_ms is None else self._clock() + deadline_ms / 1000
        smooth = self.options.schedule == "fast"
        holed = open_hole(frame, mask, self._geometry, self.options.white, smooth=smooth)
        solve = self._solver(0.0)

        def fill(rows: slice, until: float | None) -> Projected:
            return solve(
                holed.images[rows], free=holed.free[rows], max_steps=self.options.max_steps,
                deadline=until, clock=self._clock,
            )  # fmt: skip

        found = self._batches(len(holed.images), deadline, fill)
        return holed.filled(found.images, self._geometry)

    def _prepare(self, frame: Any) -> Job:
        return prepare_job(frame, self._geometry, self.options.white)

    def _solve(
        self, images: Sequence[Float], lam: float | None, deadline: float | None
    ) -> Projected:
        method = self._method(lam)
        solve = self._solver(lam) if self._code is None else self._code.at(lam).solve

        def project(rows: slice, until: float | None) -> Projected:
            batch, steps = np.stack(images[rows]), self.options.max_steps
            if self.refine in ("energy", "latent"):
                return solve(batch, max_steps=steps, deadline=until, clock=self._clock)
            return self._one_pass(method, batch)

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

    def _one_pass(self, method: EnergyMethod, images: Float) -> Projected:
        """The reconstruction, with a map of its own where one is asked for."""
        count = len(images)
        maps = None if self.refine == "none" else method.scores(images, self.refine)
        return Projected(
            method.reconstruct(images), np.zeros(count), (Status.PLAIN,) * count,
            np.ones(count, np.intp), (np.zeros(0),) * count, maps,
        )  # fmt: skip

    def _solver(self, lam: float | None) -> Callable[..., Projected]:
        """`EnergyMethod.solve`, on the device where the engines are there."""
        method = self._method(lam)
        return method.solve if self._device is None else partial(self._device.solve, method)

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
        nothing = np.zeros((len(images), 0), np.float32)
        score = self._score(job, images, change, maps)
        broken = ~np.isfinite(score)
        score[broken] = p.high - p.low
        return Found(
            restored=from_unit(geometry.to_unit_range(restored), job.frame.dtype, white=job.white),
            score=score,
            mask=np.clip(score / np.float32(p.high - p.low), 0, 1),
            z=nothing if projected.codes is None else projected.codes[rows].copy(),
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
