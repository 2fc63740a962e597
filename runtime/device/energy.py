"""Energy projection on the device: steps by batch size, kept and replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass

from unblemish.bundle import Bundle
from unblemish.errors import BackendError
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.passes import PassPair, StreamPass
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.device.steps.alternation import AlternationSettings, DeviceAlternation
from unblemish.runtime.device.steps.blending import DeviceBlending
from unblemish.runtime.device.steps.descent import DescentSettings, DeviceDescent
from unblemish.runtime.methods.autoencoder import IMAGE
from unblemish.runtime.methods.energy import EnergyMethod, Projected
from unblemish.runtime.solvers.alternation import Alternation
from unblemish.runtime.solvers.blending import Blending
from unblemish.runtime.solvers.loop import Clock, Limits, share_of
from unblemish.runtime.solvers.protocol import Bool, Float

_LOG = logging.getLogger("unblemish")
_KEPT = 16  # steps: of every size of a batch, with known masks and without

Shape = tuple[int, ...]
EnergyStep = DeviceAlternation | DeviceBlending | DeviceDescent


@dataclass(frozen=True)
class _Held:
    step: EnergyStep
    replay: Replay


class EnergyOnDevice:
    """The searches of an `EnergyMethod` on the GPU, by the same rules and to the same ends.

    A step is made when a batch of some size is first searched with some settings, and replayed from
    then on; the last batch of many has its own size, and so its own step. Batches that the engines
    were not made for are halved; what they cannot do at all runs on the host, and one line of the
    log says why.
    """

    def __init__(self, engines: DeviceEngines, bundle: Bundle) -> None:
        self._engines, self._bundle = engines, bundle
        self._held: dict[Hashable, _Held] = {}
        self._passes: dict[Shape, StreamPass] = {}
        self._pairs: dict[Shape, PassPair] = {}
        self._refused: set[Hashable] = set()

    def solve(
        self,
        method: EnergyMethod,
        images: Float,
        *,
        free: Bool | None = None,
        max_steps: int | None = None,
        deadline: float | None = None,
        clock: Clock = time.perf_counter,
    ) -> Projected:
        """See `EnergyMethod.solve`."""
        limits = method.limits(free is not None, max_steps, deadline)
        held = self._search(method, images.shape, free is not None, limits)
        if held is None and len(images) == 1:
            return method.solve(
                images, free=free, max_steps=max_steps, deadline=deadline, clock=clock
            )
        if held is None:
            half = len(images) // 2
            return Projected.joined([
                self.solve(
                    method, images[rows], free=None if free is None else free[rows],
                    max_steps=max_steps, deadline=share_of(deadline, 2 - number, clock),
                    clock=clock,
                )
                for number, rows in enumerate((slice(half), slice(half, None)))
            ])  # fmt: skip
        if isinstance(held.step, DeviceAlternation):
            held.step.start(images)
        else:
            held.step.start(images, free)
        device = self._engines.kernels.device
        seconds = run(device, held.replay, Schedule(deadline=deadline), clock=clock)
        return Projected.of(held.step.outcome(seconds))

    def _search(
        self, method: EnergyMethod, shape: Shape, known: bool, limits: Limits
    ) -> _Held | None:
        """The step kept for these settings, or a new one; None where the engines refuse it."""
        if (shape, method.schedule) in self._refused:
            return None
        key = shape, known, method.schedule, method.settings, limits.max_steps
        if key not in self._held:
            while len(self._held) >= _KEPT:
                self._held.pop(next(iter(self._held)))
            try:
                step = self._make(method, shape, known, limits)
            except BackendError as error:
                self._refuse(shape, method.schedule, error)
                return None
            self._held[key] = _Held(step, Replay(self._engines.kernels.device, step))
        return self._held[key]

    def _refuse(self, shape: Shape, schedule: str, error: BackendError) -> None:
        self._refused.add((shape, schedule))
        self._engines.kernels.synchronise()  # what was made for the passes dies with `error`
        if shape[0] > 1:
            _LOG.info("batches of %d are halved: %s", shape[0], error)
        else:
            _LOG.warning("images are searched on the host: %s", error)

    def _make(self, method: EnergyMethod, shape: Shape, known: bool, limits: Limits) -> EnergyStep:
        """Raises: BackendError where the engines were not made for this shape."""
        if not method.fast:
            return self._descent(method, shape, known, limits)
        return (self._blending if known else self._alternation)(method, shape, limits)

    def _alternation(self, method: EnergyMethod, shape: Shape, limits: Limits) -> DeviceAlternation:
        engine, s = self._single(shape), method.settings
        settings = AlternationSettings(
            s.lam, method.loss.scale, method.low, method.high,
            method.high - method.low if s.loss == "dssim" else None,
            s.loss == "gaussian" and "log_scale" in engine.outputs,
        )  # fmt: skip
        ends = Ends.of(limits, least=Alternation.least)
        return DeviceAlternation(self._engines.kernels, engine, settings, ends)

    def _blending(self, method: EnergyMethod, shape: Shape, limits: Limits) -> DeviceBlending:
        ends = Ends.of(limits, least=Blending.least)
        return DeviceBlending(
            self._engines.kernels, self._single(shape), ends, lower=method.low, upper=method.high
        )

    def _descent(
        self, method: EnergyMethod, shape: Shape, known: bool, limits: Limits
    ) -> DeviceDescent:
        passes, s = self._pair(shape), method.settings
        stop = method.stop(passes.forward.inputs[IMAGE].size // shape[0])
        settings = DescentSettings(
            s.lam, s.alpha, method.tuned(known), s.optimiser == "adam", method.low, method.high,
            s.loss, method.loss.scale, method.high - method.low, stop is not None,
        )  # fmt: skip
        ends = Ends.of(limits, least=stop or 0.0)
        return DeviceDescent(self._engines.kernels, passes, settings, ends, known=known)

    def _single(self, shape: Shape) -> StreamPass:
        if shape not in self._passes:
            path = str(self._bundle.graph("reconstruct"))
            self._passes[shape] = self._engines.single(path, {IMAGE: self._images(shape)})
        return self._passes[shape]

    def _pair(self, shape: Shape) -> PassPair:
        if shape not in self._pairs:
            there = str(self._bundle.graph("reconstruct_forward"))
            back = str(self._bundle.graph("reconstruct_backward"))
            self._pairs[shape] = self._engines.pair(there, back, {IMAGE: self._images(shape)})
        return self._pairs[shape]

    def _images(self, shape: Shape) -> DeviceArray:
        return self._engines.kernels.device.zeros(shape)
