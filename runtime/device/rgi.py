"""Robust GAN inversion on the device: steps by batch size, kept and replayed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace

import numpy as np

from unblemish.bundle import Bundle
from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.image_loss import LossSettings
from unblemish.runtime.device.inversion import DeviceInversion, GeneratorPasses
from unblemish.runtime.device.latent import DeviceLatentAdam, DeviceLatentLbfgs
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.engines import tensor_of_role
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.rgi import PAPER_RATE, RgiMethod, Solution, choose
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome
from unblemish.runtime.solvers.protocol import Bool, Float, Index

_LOG = logging.getLogger("unblemish")
_KEPT = 8  # batch sizes

_AnyStep = DeviceLatentLbfgs | DeviceLatentAdam | DeviceInversion


@dataclass
class _Held:
    """A step of one batch size, and how it is repeated."""

    step: _AnyStep
    replay: Replay


@dataclass
class _Size:
    """What is kept of one batch size."""

    passes: GeneratorPasses
    held: dict[tuple[bool, Ends], _Held] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """A batch of items: starts of images."""

    images: Float  # (T, C, h, w)
    owner: Index  # (N,) which of them each item looks at
    z: Float  # (N, n)
    lam: Float  # (N,)
    free: Bool | None  # (T, 1, h, w)
    limits: Limits
    near: bool
    clock: Clock

    def free_of(self, owner: Index) -> Bool | None:
        return None if self.free is None else self.free[owner]


class RgiOnDevice:
    """The search of `RgiMethod` on the GPU; the same ends, by the same rules.

    Stages are decided on the device; which start of an image goes on, by the host, once per batch.
    What the engines cannot do is done by the method on the host, and one line of the log says why.
    """

    def __init__(self, engines: DeviceEngines, bundle: Bundle) -> None:
        self._engines, self._bundle = engines, bundle
        self._sizes: dict[int, _Size] = {}
        self._refused: set[int | str] = set()

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
        owner = np.repeat(np.arange(count), each)
        job = _Job(
            images, owner, np.ascontiguousarray(starts.reshape(-1, size), np.float32),
            np.repeat(np.asarray(lam, np.float32), each), free, limits, near, clock,
        )  # fmt: skip
        outcome = None if self._foreign(method) else self._search(method, job)
        if outcome is None:
            return method.solve(images, starts, lam, limits, near=near, free=free, clock=clock)
        return choose(outcome, owner, count)

    def _foreign(self, method: RgiMethod) -> bool:
        """Whether the objective has terms that are not computed on the device."""
        if method.terms and "terms" not in self._refused:
            self._refused.add("terms")
            kinds = ", ".join(type(term).__name__ for term in method.terms)
            _LOG.warning("the search runs on the host: %s is not computed on the device", kinds)
        return bool(method.terms)

    def _search(self, method: RgiMethod, job: _Job) -> Outcome | None:
        """None where it has to be done on the host."""
        racing = method.schedule != "paper" and job.limits.race > 0 and len(job.z) > len(job.images)
        first = self._held(method, job, len(job.z))
        last = self._held(method, job, len(job.images)) if racing else first
        if first is None or last is None:
            return None
        images, free = job.images[job.owner], job.free_of(job.owner)
        if isinstance(first.step, DeviceInversion):
            first.step.start(images, job.z, job.lam)
        elif isinstance(first.step, DeviceLatentAdam):
            first.step.start(images, job.z, job.lam, free)
        else:
            rungs = method.rungs(near=job.near, known=free is not None)
            first.step.start(
                images, job.z, job.lam, rungs=rungs, race=job.limits.race,
                floor=job.limits.floor, free=free,
            )  # fmt: skip
        outcome = self._run(first, job, job.limits.race if racing else None)
        if isinstance(first.step, DeviceLatentLbfgs) and isinstance(last.step, DeviceLatentLbfgs):
            return self._raced(first.step, last, job, outcome) if racing else outcome
        return outcome

    def _run(self, held: _Held, job: _Job, most: int | None = None) -> Outcome:
        device = self._engines.kernels.device
        schedule = Schedule(deadline=job.limits.deadline, most=most)
        outcome = held.step.outcome(run(device, held.replay, schedule, clock=job.clock))
        z, *mask = outcome.best
        return replace(outcome, best=(z.reshape(len(z), -1), *mask))

    def _raced(
        self, step: DeviceLatentLbfgs, last: _Held, job: _Job, outcome: Outcome
    ) -> Outcome:
        """Let only the best start of each image go on; see `solvers.loop`."""
        running = np.array([s is Status.DEADLINE for s in outcome.status])
        if not running.any() or int(outcome.steps[running].max()) < job.limits.race:
            return outcome
        opening = np.where(running, step.progress.opening, np.nan)
        of_image = [np.flatnonzero(job.owner == t) for t in range(len(job.images))]
        idle = np.array([not running[rows].any() for rows in of_image])
        winners = np.array(
            [rows[0] if end else rows[int(np.nanargmin(opening[rows]))]
             for rows, end in zip(of_image, idle, strict=True)]
        )  # fmt: skip
        lost = running.copy()
        lost[winners] = False
        outcome.stage[lost], outcome.value[lost] = 0, opening[lost]
        assert isinstance(last.step, DeviceLatentLbfgs)
        last.step.go_on(step, winners, idle, job.images, job.free)
        return _joined(outcome, lost, self._run(last, job), winners, ~idle)

    def _held(self, method: RgiMethod, job: _Job, batch: int) -> _Held | None:
        """The step kept for a batch size, or a new one; None where it has to run on the host."""
        if batch in self._refused:
            return None
        known, ends = job.free is not None, Ends.of(replace(job.limits, floor=0.0))
        try:
            size = self._size(batch, job)
            if (known, ends) not in size.held:
                step = self._make(method, size.passes, known, ends)
                size.held[known, ends] = _Held(step, Replay(self._engines.kernels.device, step))
        except (BackendError, ShapeError) as error:
            self._refused.add(batch)
            _LOG.warning("batches of %d are searched on the host: %s", batch, error)
            return None
        return size.held[known, ends]

    def _size(self, batch: int, job: _Job) -> _Size:
        """Raises: BackendError or ShapeError where the engines were not made for this size."""
        if batch not in self._sizes:
            while len(self._sizes) >= _KEPT:
                self._sizes.pop(next(iter(self._sizes)))
            self._sizes[batch] = _Size(self._passes(batch))
        return self._sizes[batch]

    def _passes(self, batch: int) -> GeneratorPasses:
        latent = tensor_of_role(self._bundle.manifest, "generator_forward", "latent", output=False)
        shape = batch, *(int(d) for d in latent.shape[1:])
        pair = self._engines.pair(
            str(self._bundle.graph("generator_forward")),
            str(self._bundle.graph("generator_backward")),
            {latent.name: self._engines.kernels.device.zeros(shape)},
        )
        return GeneratorPasses.of(pair)

    def _make(
        self, method: RgiMethod, passes: GeneratorPasses, known: bool, ends: Ends
    ) -> _AnyStep:
        kernels = self._engines.kernels
        loss = LossSettings("l2" if known else method.norm, method.shared, method.masked, known)
        weight = method.latent_weight
        if method.schedule != "paper":
            solver = Lbfgs(scale=method.lengths)
            return DeviceLatentLbfgs(kernels, passes, loss, solver, ends, weight=weight)
        if known or not method.masked:
            return DeviceLatentAdam(kernels, passes, loss, ends, rate=PAPER_RATE, weight=weight)
        return DeviceInversion(
            kernels, passes, ends, shared=method.shared, rate=PAPER_RATE, norm=method.norm,
            weight=weight,
        )  # fmt: skip


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
