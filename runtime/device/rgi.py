"""Robust GAN inversion on the device: steps by batch size, kept and replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import numpy as np

from unblemish.bundle import Bundle
from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.device.steps.image_loss import LossSettings
from unblemish.runtime.device.steps.inversion import DeviceInversion, GeneratorPasses
from unblemish.runtime.device.steps.latent import DeviceLatentAdam, DeviceLatentLbfgs
from unblemish.runtime.device.steps.terms import DeviceTerm, open_term
from unblemish.runtime.engines import batch_limit, tensor_of_role
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.rgi import PAPER_RATE, RgiMethod, Solution, choose
from unblemish.runtime.methods.terms import ImageTerm
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome, share_of
from unblemish.runtime.solvers.protocol import Bool, Float, Index

_LOG = logging.getLogger("unblemish")
_KEPT = 8  # batch sizes, and steps of each
# Not measured on hardware: room for what is kept for the way back, and items that fill a large GPU.
_BUDGET = 1 << 30
_LARGEST = 64

_AnyStep = DeviceLatentLbfgs | DeviceLatentAdam | DeviceInversion


@dataclass
class _Held:
    """A step of one batch size, how it is repeated, and the further terms of its objective."""

    step: _AnyStep
    replay: Replay
    terms: tuple[DeviceTerm, ...]

    def start_terms(self, method: RgiMethod) -> None:
        """Behind the start of the step: the images are there."""
        for ours, theirs in zip(self.terms, method.terms, strict=False):
            ours.start(theirs, self.step.x)


@dataclass
class _Size:
    """What is kept of one batch size."""

    passes: GeneratorPasses
    held: dict[Hashable, _Held] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """A batch of items: starts of images."""

    method: RgiMethod
    images: Float  # (T, C, h, w)
    owner: Index  # (N,) which of them each item looks at
    z: Float  # (N, n)
    lam: Float  # (N,)
    free: Bool | None  # (T, 1, h, w)
    limits: Limits
    near: bool
    clock: Clock

    @property
    def racing(self) -> bool:
        """Whether starts of an image race."""
        starts = len(self.z) > len(self.images)
        return starts and self.limits.race > 0 and self.method.schedule != "paper"


class RgiOnDevice:
    """The search of `RgiMethod` on the GPU; the same ends, by the same rules.

    Stages are decided on the device; which start of an image goes on, by the host, once per batch.
    Batches that the engines were not made for are halved. What they cannot do at all is done by the
    method on the host, and one line of the log says why.
    """

    def __init__(self, engines: DeviceEngines, bundle: Bundle) -> None:
        self._engines, self._bundle = engines, bundle
        self._sizes: dict[int, _Size] = {}
        self._refused: set[int] = set()
        self.batch = batch_limit(bundle.manifest, _BUDGET, _LARGEST)  # items at once

    def solve(
        self,
        method: RgiMethod,
        images: Float,
        starts: Float,
        lam: Float,
        limits: Limits,
        *,
        near: bool = False,
        free: Bool | None = None,
        clock: Clock = time.perf_counter,
    ) -> Solution:
        """See `RgiMethod.solve`."""
        count, each, size = starts.shape
        job = _Job(
            method, images, np.repeat(np.arange(count), each),
            np.ascontiguousarray(starts.reshape(-1, size), np.float32),
            np.repeat(np.asarray(lam, np.float32), each), free, limits, near, clock,
        )  # fmt: skip
        first = self._held(job, len(job.z))
        last = self._held(job, count) if first is not None and job.racing else first
        if first is not None and last is not None:
            return choose(self._solved(first, last, job), job.owner, count)
        if count == 1:
            return method.solve(images, starts, lam, limits, near=near, free=free, clock=clock)
        parts = []
        for number, rows in enumerate((slice(0, count // 2), slice(count // 2, count))):
            until = share_of(limits.deadline, 2 - number, clock)
            parts.append(
                self.solve(
                    method, images[rows], starts[rows], lam[rows], replace(limits, deadline=until),
                    near=near, free=None if free is None else free[rows], clock=clock,
                )
            )  # fmt: skip
        return Solution.joined(parts)

    def _solved(self, first: _Held, last: _Held, job: _Job) -> Outcome:
        began = time.perf_counter()
        self._start(first, job)
        outcome = self._run(first, job, job.limits.race if job.racing else None)
        if job.racing:
            outcome = self._raced(first, last, job, outcome)
        job.method.engine.watch.add("device", began)
        return outcome

    def _start(self, held: _Held, job: _Job) -> None:
        step, images = held.step, job.images[job.owner]
        free = None if job.free is None else job.free[job.owner]
        if isinstance(step, DeviceInversion):
            step.start(images, job.z, job.lam)
        elif isinstance(step, DeviceLatentAdam):
            step.start(images, job.z, job.lam, free)
        else:
            rungs = job.method.rungs(near=job.near, known=free is not None)
            step.start(
                images, job.z, job.lam, rungs=rungs, race=job.limits.race,
                floor=job.limits.floor, free=free,
            )  # fmt: skip
        held.start_terms(job.method)

    def _run(self, held: _Held, job: _Job, most: int | None = None) -> Outcome:
        device = self._engines.kernels.device
        schedule = Schedule(deadline=job.limits.deadline, most=most)
        outcome = held.step.outcome(run(device, held.replay, schedule, clock=job.clock))
        z, *mask = outcome.best
        return replace(outcome, best=(z.reshape(len(z), -1), *mask))

    def _raced(self, first: _Held, last: _Held, job: _Job, outcome: Outcome) -> Outcome:
        """Let only the best start of each image go on; see `solvers.loop`."""
        assert isinstance(first.step, DeviceLatentLbfgs)
        assert isinstance(last.step, DeviceLatentLbfgs)
        running = np.array([s is Status.DEADLINE for s in outcome.status])
        if not running.any() or int(outcome.steps[running].max()) < job.limits.race:
            return outcome
        opening = np.where(running, first.step.progress.opening, np.nan)
        starts = np.arange(len(job.z)).reshape(len(job.images), -1)
        idle: Bool = ~np.any(running[starts], axis=1)
        winners = np.array(
            [rows[0 if none else int(np.nanargmin(opening[rows]))]
             for rows, none in zip(starts, idle, strict=True)]
        )  # fmt: skip
        lost = running.copy()
        lost[winners] = False
        outcome.stage[lost], outcome.value[lost] = 0, opening[lost]
        last.step.go_on(first.step, winners, idle, job.images, job.free)
        last.start_terms(job.method)
        return _joined(outcome, lost, self._run(last, job), winners, ~idle)

    def _held(self, job: _Job, batch: int) -> _Held | None:
        """The step kept for a batch size, or a new one; None where the engines refuse it."""
        if batch in self._refused:
            return None
        known, ends = job.free is not None, Ends.of(replace(job.limits, floor=0.0))
        key = known, ends, job.method.latent_weight
        try:
            size = self._size(batch)
            if key not in size.held:
                while len(size.held) >= _KEPT:
                    size.held.pop(next(iter(size.held)))
                size.held[key] = self._make(job.method, size.passes, known, ends)
        except (BackendError, ShapeError) as error:
            self._refuse(job, batch, error)
            return None
        return size.held[key]

    def _refuse(self, job: _Job, batch: int, error: Exception) -> None:
        """Images are halved as long as there are several; one line says what becomes of them."""
        self._refused.add(batch)
        self._engines.kernels.synchronise()  # what was made for the passes dies with `error`
        if len(job.images) > 1:
            _LOG.info("batches of %d are halved: %s", batch, error)
        else:
            _LOG.warning("latents are searched on the host: %s", error)

    def _size(self, batch: int) -> _Size:
        """Raises: BackendError or ShapeError where the engines were not made for this size."""
        if batch not in self._sizes:
            while len(self._sizes) >= _KEPT:
                self._sizes.pop(next(iter(self._sizes)))
            self._sizes[batch] = _Size(self._passes(batch))
        return self._sizes[batch]

    def _passes(self, batch: int) -> GeneratorPasses:
        latent = tensor_of_role(self._bundle.manifest, "generator_forward", "latent", output=False)
        shape = batch, *(int(d) for d in latent.shape[1:])
        zeros = self._engines.kernels.device.zeros(shape)
        there = str(self._bundle.graph("generator_forward"))
        back = str(self._bundle.graph("generator_backward"))
        return GeneratorPasses.of(self._engines.pair(there, back, {latent.name: zeros}))

    def _make(self, method: RgiMethod, passes: GeneratorPasses, known: bool, ends: Ends) -> _Held:
        kernels, rate, weight = self._engines.kernels, PAPER_RATE, method.latent_weight
        terms = () if known else tuple(self._term(term, passes) for term in method.terms)
        loss = LossSettings("l2" if known else method.norm, method.shared, method.masked, known)
        step: _AnyStep
        if method.schedule != "paper":
            solver = Lbfgs(scale=method.lengths)
            step = DeviceLatentLbfgs(
                kernels, passes, loss, solver, ends, weight=weight, terms=terms
            )
        elif known or not method.masked:
            step = DeviceLatentAdam(
                kernels, passes, loss, ends, rate=rate, weight=weight, terms=terms
            )
        else:
            step = DeviceInversion(
                kernels, passes, ends, shared=method.shared, rate=rate, norm=method.norm,
                weight=weight, terms=terms,
            )  # fmt: skip
        return _Held(step, Replay(kernels.device, step), terms)

    def _term(self, term: ImageTerm, passes: GeneratorPasses) -> DeviceTerm:
        return open_term(self._engines, self._bundle, type(term), term.weight, passes.image)


def _joined(
    outcome: Outcome, lost: Bool, further: Outcome, winners: Index, gone_on: Bool
) -> Outcome:
    """The items of a race, and what became of those that went on."""
    status, trace = list(outcome.status), list(outcome.trace)
    for item in np.flatnonzero(lost):
        status[item] = Status.MAX_STEPS
    for row in np.flatnonzero(gone_on):
        item = winners[row]
        status[item], trace[item] = further.status[row], further.trace[row]
        outcome.value[item], outcome.stage[item] = further.value[row], further.stage[row]
        outcome.steps[item], outcome.best[0][item] = further.steps[row], further.best[0][row]
    return replace(
        outcome, status=tuple(status), trace=tuple(trace),
        seconds=outcome.seconds + further.seconds,
    )  # fmt: skip
