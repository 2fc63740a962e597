"""Search: a frame in, the nearest normal image and the raw score map out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Manifest
from unblemish.errors import ShapeError
from unblemish.kernels import Kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.backends.protocol import Pair
from unblemish.runtime.engines import Engines, load_discriminator_features, load_engines
from unblemish.runtime.found import Found
from unblemish.runtime.frames import to_unit, white_for
from unblemish.runtime.holes import open_hole
from unblemish.runtime.inspection import Inspection
from unblemish.runtime.jobs import check_search, milliseconds
from unblemish.runtime.methods.anogan import PAPER_STEPS as ANOGAN_STEPS
from unblemish.runtime.methods.anogan import FeatureDistance
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.metric import typical_lengths
from unblemish.runtime.methods.rgi import (
    PAPER_STEPS,
    RgiMethod,
    Solution,
    limits_for,
    unrefined,
)
from unblemish.runtime.methods.rrgi import Finetuner, load_finetuner
from unblemish.runtime.options import GENERATOR_REFINEMENTS, SearchOptions, check_refine
from unblemish.runtime.placement import geometry_at, place
from unblemish.runtime.reserve import Reserve
from unblemish.runtime.restore import Tiles, restore
from unblemish.runtime.solvers.loop import Clock, Limits, share_of
from unblemish.runtime.solvers.protocol import Double, Float
from unblemish.runtime.starting import PAPER_CANDIDATES, Starter, Starts

if TYPE_CHECKING:
    from unblemish.runtime.device.rgi import RgiOnDevice

_STARTS = 4
_ENCODED_STARTS = 2  # an encoder's latents are near already
_UNMASKED = {"l2": "l2", "l1": "l1", "anogan": "l1"}  # searches without a mask, and their norm


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
        self._clock = clock
        backend = open_backend(self.options.backend, self.options.threads, bundle=bundle)
        engines, self._kernels = place(backend, kernels, self.options.threads)
        self._geometry = geometry_at(engines, bundle.manifest.preprocess)
        self._device: RgiOnDevice | None = None
        if engines is not None:
            from unblemish.runtime.device.rgi import RgiOnDevice

            self._device = RgiOnDevice(engines, bundle)
        self._engines: Engines = load_engines(bundle, backend)
        asked = self.options.refine or _own_refine(bundle.manifest)
        self.refine = check_refine(asked, GENERATOR_REFINEMENTS, "rgi")
        self._critic: Pair | None = None
        if self.refine == "anogan":
            self._critic = load_discriminator_features(bundle, backend)
        self._paper = self.options.schedule == "paper"
        encoded = self._settings.start == "encoder"
        starts = _ENCODED_STARTS if encoded else _STARTS
        drawn = PAPER_CANDIDATES if self._critic is None else 1
        self._starter = Starter(
            bundle.manifest, self._engines, paper=self._paper, starts=starts, drawn=drawn
        )
        self._method = self._make_method()
        self._after = Reserve()  # what restoring takes
        self._reserved = Reserve()  # what the caller does afterwards
        self._finetuner: Finetuner | None = None
        if self.refine == "rrgi":
            self._finetuner = load_finetuner(
                bundle, backend, self._kernels, paper=self._paper, threads=self.options.threads,
                device=engines,
            )  # fmt: skip
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
            lam: instead of the bundle's lambda; of AnoGAN, instead of its weight of the features.
            deadline_ms: time for everything, counted from this call; the best so far is returned.
            previous: result (or latents) of the frame before, as one of the starts.
        Raises: SourceError where the frame is not usable; ShapeError where `previous` does not fit.
        """
        return self.many([frame], lam=lam, deadline_ms=deadline_ms, previous=[previous])[0]

    @property
    def frames_at_once(self) -> int:
        """Frames that are worth searching together."""
        return max(self._batch // self._starter.starts, 1)

    @property
    def _batch(self) -> int:
        """Items at once."""
        return self._engines.batch if self._device is None else self._device.batch

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
        weight = self._own_lam() if lam is None else float(lam)
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
        timings = milliseconds(
            watch.seconds, preprocess=prepared - began, search=solved - prepared,
            restore=done - solved, total=done - began,
        )  # fmt: skip
        return [replace(one, timings=timings) for one in found]

    def inpaint(
        self, frame: Any, mask: NDArray[Any], *, deadline_ms: float | None = None
    ) -> NDArray[Any]:
        """The frame with the pixels of the mask (H, W) replaced; the others stay, bit by bit.

        The latent is searched by what lies outside of the mask; discriminator and perceptual terms,
        which see whole images, do not take part.
        Returns: as the frame.
        Raises: SourceError where the frame is not usable; ShapeError where the mask does not fit.
        """
        check_search(None, deadline_ms)
        deadline = None if deadline_ms is None else self._clock() + deadline_ms / 1000
        holed = open_hole(frame, mask, self._geometry, self.options.white)
        starts = self._starter.choose(holed.images, None, self._settings.lam)
        per_batch = max(self._batch // starts.z.shape[1], 1)
        edges = range(0, len(holed.images), per_batch)
        made = []
        for number, first in enumerate(edges):
            rows = slice(first, first + per_batch)
            until = share_of(deadline, len(edges) - number, self._clock)
            images = holed.images[rows]
            weights = np.full(len(images), self._settings.lam, np.float32)
            limits = self._limits(starts, self._settings.lam, until)
            found = self._solver(self._method)(
                images, starts.z[rows], weights, limits, free=holed.free[rows], clock=self._clock
            )
            made.append(self._engines.generate(found.z))
        return holed.filled(np.concatenate(made), self._geometry)

    def _prepare(self, frame: Any, previous: Inspection | Found | Float | None) -> _Job:
        white = white_for(frame, self.options.white, self.bundle.manifest.preprocess.white)
        unit = to_unit(frame, white=white)
        images = self._geometry.images_of(frame, unit, white)
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
        robust = lam if self._critic is None else self._settings.lam
        starts = self._starter.choose(images, _joined_previous(jobs), robust)
        per_batch = max(self._batch // starts.z.shape[1], 1)
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
        method = self._method_at(lam)
        at_target = method.inversion(Targets(images, np.arange(len(images))), weights[None])
        if self.refine == "none":
            return self._tiles(at_target, unrefined(starts.z[:, 0]))
        limits = self._limits(starts, lam, deadline)
        solution = self._solver(method)(
            images, starts.z, weights, limits, near=starts.near, clock=self._clock
        )
        if self._finetuner is not None:
            solution = self._finetuner.refine(at_target, solution, deadline, self._clock)
        return self._tiles(at_target, solution)

    def _solver(self, method: RgiMethod) -> Callable[..., Solution]:
        """`RgiMethod.solve`, on the device where the engines are there."""
        return method.solve if self._device is None else partial(self._device.solve, method)

    def _limits(self, starts: Starts, lam: float, deadline: float | None) -> Limits:
        if self._finetuner is not None:
            deadline = share_of(deadline, 2, self._clock)  # the other half is for the weights
        published = PAPER_STEPS if self._critic is None else ANOGAN_STEPS
        steps = self.options.max_steps or (published if self._paper else self._settings.max_steps)
        return limits_for(
            self.options.schedule,
            steps,
            self._settings.tolerance,
            deadline,
            starts.z.shape[1],
            lam if self._critic is None else 0.0,
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

    def _own_lam(self) -> float:
        return self._settings.lam if self._critic is None else self._settings.anogan_weight

    def _method_at(self, lam: float) -> RgiMethod:
        """The method; of AnoGAN with the discriminator's features, and no other term."""
        if self._critic is None:
            return self._method
        term = FeatureDistance(self._critic, self._kernels, lam)
        return replace(self._method, terms=(term,), latent_weight=0.0)

    def _make_method(self) -> RgiMethod:
        settings = self._settings
        return RgiMethod(
            engine=self._engines.generator,
            kernels=self._kernels,
            norm=_UNMASKED.get(self.refine, settings.loss),
            shared=settings.mask == "shared",
            masked=self.refine not in _UNMASKED,
            schedule=self.options.schedule,
            terms=self._engines.terms,
            latent_weight=settings.latent_weight,
            lengths=None if self._paper or self.refine == "none" else self._latent_lengths(),
        )

    def _latent_lengths(self) -> Double:
        return typical_lengths(self._engines.generator, self.bundle.manifest.model.latent_size)


def _own_refine(manifest: Manifest) -> str:
    """What was calibrated for; whether RGI frees the weights is for the settings to say."""
    calibrated = manifest.calibration and manifest.calibration.refine
    if calibrated and calibrated not in ("rgi", "rrgi"):
        return calibrated
    return "rrgi" if manifest.rgi.finetune_steps else "rgi"


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
