"""Search: a frame in, the nearest normal image and the raw score map out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.errors import ShapeError
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.engines import Engines, load_engines
from unblemish.runtime.found import Found
from unblemish.runtime.frames import to_unit, white_for
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.inspection import Inspection
from unblemish.runtime.jobs import check_search
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.metric import latent_lengths
from unblemish.runtime.methods.rgi import (
    PAPER_STEPS,
    RgiMethod,
    Solution,
    limits_for,
    unrefined,
)
from unblemish.runtime.methods.rrgi import Finetuner, load_finetuner
from unblemish.runtime.options import GENERATOR_REFINEMENTS, SearchOptions, check_refine
from unblemish.runtime.reserve import Reserve
from unblemish.runtime.restore import Tiles, restore
from unblemish.runtime.solvers.loop import Clock, Limits, share_of
from unblemish.runtime.solvers.protocol import Double, Float
from unblemish.runtime.starting import Starter, Starts

_STARTS = 4
_ENCODED_STARTS = 2  # an encoder's latents are near already
_METRIC_SAMPLES = 16


@dataclass
class _Job:
    """One frame on its way."""

    frame: NDArray[Any]
    unit: Float
    images: Float
    previous: Float | None
    white: float | None


class Search:
    """The search of one bundle. One search, one thread; `Inspector` adds the lock.

    >>> found = Search(bundle)(frame)                                      # doctest: +SKIP
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
        self._settings = bundle.manifest.rgi
        self._geometry = Geometry(bundle.manifest.preprocess)
        self._kernels = kernels or default_kernels(self.options.threads)
        self._clock = clock
        backend = open_backend(self.options.backend, self.options.threads, bundle=bundle)
        self._engines: Engines = load_engines(bundle, backend)
        own = "rrgi" if self._settings.finetune_steps else "rgi"
        self.refine = check_refine(self.options.refine or own, GENERATOR_REFINEMENTS, "rgi")
        self._paper = self.options.schedule == "paper"
        encoded = self._settings.start == "encoder"
        starts = _ENCODED_STARTS if encoded else _STARTS
        self._starter = Starter(bundle.manifest, self._engines, paper=self._paper, starts=starts)
        self._method = self._make_method()
        self._after = Reserve()  # what restoring takes
        self._reserved = Reserve()  # what the caller does afterwards
        self._finetuner: Finetuner | None = None
        if self.refine == "rrgi":
            self._finetuner = load_finetuner(
                bundle, backend, self._kernels, paper=self._paper, threads=self.options.threads
            )
            self._finetuner.engine.watch = self._engines.generator.watch

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
            lam: instead of the bundle's lambda.
            deadline_ms: time for everything, counted from this call; the best so far is returned.
            previous: result (or latents) of the frame before, as one of the starts.
        Raises: SourceError where the frame is not usable; ShapeError where `previous` does not fit.
        """
        return self.many([frame], lam=lam, deadline_ms=deadline_ms, previous=[previous])[0]

    @property
    def frames_at_once(self) -> int:
        """Frames that are worth searching together."""
        return max(self._engines.batch // self._starter.starts, 1)

    def reserve(self, pixels: int, seconds: float) -> None:
        """Note what the caller did afterwards: deadlines leave time for it."""
        self._reserved.add(pixels, seconds)

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
        weight = self._settings.lam if lam is None else float(lam)
        if not frames:
            return []
        before: Sequence[Inspection | Found | Float | None] = previous or [None] * len(frames)
        jobs = [self._prepare(f, p) for f, p in zip(frames, before, strict=True)]
        pixels = sum(map(_pixels, jobs))
        prepared = self._clock()
        deadline = (
            None
            if deadline_ms is None
            else began
            + deadline_ms / 1000
            - self._after.expected(pixels)
            - sum(self._reserved.expected(_pixels(job)) for job in jobs)
        )
        watch = self._engines.generator.watch
        watch.seconds.clear()
        tiles = self._solve(jobs, weight, deadline)
        solved = self._clock()
        found = self._restore(jobs, tiles)
        done = self._clock()
        self._after.add(pixels, done - solved)
        timings = {name: 1000 * s for name, s in watch.seconds.items()}
        timings |= {
            "preprocess": 1000 * (prepared - began),
            "search": 1000 * (solved - prepared),
            "restore": 1000 * (done - solved),
            "total": 1000 * (done - began),
        }
        return [replace(one, timings=timings) for one in found]

    def _prepare(self, frame: Any, previous: Inspection | Found | Float | None) -> _Job:
        white = white_for(frame, self.options.white, self.bundle.manifest.preprocess.white)
        unit = to_unit(frame, white=white)
        images = self._geometry.unit_to_model(unit)
        latent = _latent_of(previous)
        expected = len(images), self.bundle.manifest.model.latent_size
        if latent is not None and latent.shape != expected:
            raise ShapeError(
                f"previous holds latents of shape {latent.shape}, this frame needs {expected}: "
                "it comes from a frame of another size or another bundle. Leave it out."
            )
        return _Job(frame, unit, images, latent, white)

    def _solve(self, jobs: list[_Job], lam: float, deadline: float | None) -> Tiles:
        """Search all tiles, in batches; later batches share the time that is left."""
        images = np.concatenate([job.images for job in jobs])
        starts = self._starter.choose(images, _joined_previous(jobs), lam)
        per_batch = max(self._engines.batch // starts.z.shape[1], 1)
        edges = list(range(0, len(images), per_batch))
        parts = []
        for number, first in enumerate(edges):
            rows = slice(first, first + per_batch)
            until = share_of(deadline, len(edges) - number, self._clock)
            chosen = Starts(starts.z[rows], starts.near)
            parts.append(self._solve_batch(images[rows], chosen, lam, until))
        return Tiles.joined(parts)

    def _solve_batch(
        self, images: Float, starts: Starts, lam: float, deadline: float | None
    ) -> Tiles:
        weights = np.full(len(images), lam, np.float32)
        at_target = self._method.inversion(Targets(images, np.arange(len(images))), weights[None])
        if self.refine == "none":
            return self._tiles(at_target, unrefined(starts.z[:, 0]))
        limits = self._limits(starts, lam, deadline)
        solution = self._method.solve(
            images, starts.z, weights, limits, near=starts.near, clock=self._clock
        )
        if self._finetuner is not None:
            solution = self._finetuner.refine(at_target, solution, deadline, self._clock)
        return self._tiles(at_target, solution)

    def _limits(self, starts: Starts, lam: float, deadline: float | None) -> Limits:
        if self._finetuner is not None:
            deadline = share_of(deadline, 2, self._clock)  # the other half is for the weights
        steps = self.options.max_steps or (PAPER_STEPS if self._paper else self._settings.max_steps)
        return limits_for(
            self.options.schedule,
            steps,
            self._settings.tolerance,
            deadline,
            starts.z.shape[1],
            lam,
        )

    def _tiles(self, at_target: Inversion, solution: Solution) -> Tiles:
        """Images, masks and objectives at a solution."""
        images = solution.images
        if images is None:
            images = self._engines.generate(solution.z)
        lam = np.ascontiguousarray(at_target.ladder[-1], np.float32)
        value, mask, _ = at_target.image_part(at_target.targets.images, images, lam)
        at_target.with_prior(solution.z, np.zeros_like(solution.z), value)
        best = mask if solution.mask is None else solution.mask
        return Tiles(
            z=solution.z,
            images=images,
            mask=np.array(best.max(axis=1, keepdims=True)),
            value=value.copy(),
            status=solution.status,
            steps=solution.steps,
            trace=solution.trace,
        )

    def _restore(self, jobs: list[_Job], tiles: Tiles) -> list[Found]:
        """Give every frame its tiles back."""
        found, first = [], 0
        for job in jobs:
            rows = slice(first, first + len(job.images))
            first = rows.stop
            part = tiles.part(rows)
            found.append(
                restore(
                    part,
                    job.frame,
                    job.unit,
                    self._geometry,
                    job.white,
                    self._settings.polarity,
                )
            )
        return found

    def _make_method(self) -> RgiMethod:
        settings = self._settings
        return RgiMethod(
            engine=self._engines.generator,
            kernels=self._kernels,
            norm=self.refine if self.refine in ("l2", "l1") else settings.loss,
            shared=settings.mask == "shared",
            masked=self.refine not in ("l2", "l1"),
            schedule=self.options.schedule,
            terms=self._engines.terms,
            latent_weight=settings.latent_weight,
            lengths=None if self._paper or self.refine == "none" else self._latent_lengths(),
        )

    def _latent_lengths(self) -> Double:
        size = self.bundle.manifest.model.latent_size
        latents = np.random.default_rng(1).standard_normal((_METRIC_SAMPLES, size))
        return latent_lengths(self._engines.generator, latents.astype(np.float32))


def _pixels(job: _Job) -> int:
    return int(np.prod(job.unit.shape[:2]))


def _latent_of(previous: Inspection | Found | Float | None) -> Float | None:
    if isinstance(previous, Inspection):
        return previous.latent
    if isinstance(previous, Found):
        return previous.z
    return None if previous is None else np.asarray(previous, np.float32)


def _joined_previous(jobs: list[_Job]) -> Float | None:
    """Previous latents of all tiles, where every frame has some."""
    known = [job.previous for job in jobs if job.previous is not None]
    return np.concatenate(known) if len(known) == len(jobs) else None
