"""F2PAD's descents on the device: steps by the sizes of a batch, kept and replayed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.searches import F2padSettings
from unblemish.errors import BackendError
from unblemish.runtime.detectors.protocol import IMAGE
from unblemish.runtime.device.detectors.detector import DeviceDetector
from unblemish.runtime.device.detectors.projection import ViewTables
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.replay import Replay
from unblemish.runtime.device.steps.decomposition import DecompositionSettings, DeviceDecomposition
from unblemish.runtime.methods.decomposition import Prior, Weights
from unblemish.runtime.methods.f2pad_batch import Batch
from unblemish.runtime.methods.f2pad_descent import pixels_of
from unblemish.runtime.methods.f2pad_plan import Plan
from unblemish.runtime.solvers.loop import Clock, Limits, Outcome
from unblemish.runtime.solvers.protocol import Double, Float

_LOG = logging.getLogger("unblemish")
_KEPT = 4  # steps: each has ten images and the trace of all its steps

Byte = NDArray[np.uint8]
Shape = tuple[int, ...]


class F2padOnDevice:
    """The descents of a detector's bundle on the GPU; made for plans of whole model images.

    What the engines were not made for is searched on the host, and one line of the log says why.
    """

    def __init__(
        self,
        engines: DeviceEngines,
        bundle: Bundle,
        detector: DeviceDetector,
        settings: F2padSettings,
        plan: Plan,
        prior: Prior | None,
    ) -> None:
        self._engines, self._bundle, self._detector = engines, bundle, detector
        self._settings, self._plan, self._prior = settings, plan, prior
        self._held: dict[tuple[object, ...], _Held] = {}
        self._pairs: dict[Shape, PassPair] = {}
        self._refused: set[Shape] = set()

    def __call__(self, batch: Batch) -> OnDevice | None:
        """The descent of a batch, see `Descent`; None where it is for the host."""
        shape = batch.view.images.shape
        if shape in self._refused:
            return None
        tables = ViewTables.of(batch.view)
        try:
            held = self._step(tables)
        except BackendError as error:
            self._engines.kernels.synchronise()
            self._refused.add(shape)
            _LOG.warning("F2PAD descends on the host for %d x %d x %d x %d: %s", *shape, error)
            return None
        held.step.load(batch, tables)
        return OnDevice(held, batch, self._settings, self._plan)

    def _step(self, tables: ViewTables) -> _Held:
        if tables.key not in self._held:
            while len(self._held) >= _KEPT:
                self._held.pop(next(iter(self._held)))
            limits = self._plan.limits(None)
            # Arrived is what changes by less than `decrease`.
            least = float(np.nextafter(limits.decrease, 0))
            sharing = self._plan.sharing(self._settings)
            settings = DecompositionSettings(
                self._prior, sharing, self._plan.floor, self._settings.epsilon,
                Ends.of(limits, least=least),
            )  # fmt: skip
            kernels, model = self._engines.kernels, self._detector.scoring.model
            pair = self._pair(tables.view.images.shape)
            step = DeviceDecomposition(kernels, pair, model, tables, settings)
            self._held[tables.key] = _Held(step, Replay(kernels.device, step))
        return self._held[tables.key]

    def _pair(self, shape: Shape) -> PassPair:
        """Of steps for frames of other sizes the same, since they take turns."""
        if shape not in self._pairs:
            there = str(self._bundle.graph("features_forward"))
            back = str(self._bundle.graph("features_backward"))
            images = self._engines.kernels.device.zeros(shape)
            try:
                self._pairs[shape] = self._engines.pair(there, back, {IMAGE: images})
            except BackendError:
                self._engines.kernels.synchronise()  # `images` goes; what clears it must not wait
                raise
        return self._pairs[shape]


@dataclass(frozen=True)
class _Held:
    step: DeviceDecomposition
    replay: Replay


@dataclass(frozen=True)
class OnDevice:
    """See `Descent`."""

    held: _Held
    batch: Batch
    settings: F2padSettings
    plan: Plan

    def scored(self, n: Float) -> tuple[Double, Float]:
        """See `Descent`."""
        return self.held.step.scored(n)

    def descend(
        self, weights: Weights, free: Byte, start: Float, limits: Limits, clock: Clock
    ) -> Outcome:
        """See `Descent`."""
        step = self.held.step
        step.start(start, pixels_of(self.batch, free, self.settings, self.plan), weights)
        schedule = Schedule(deadline=limits.deadline)
        seconds = run(step.kernels.device, self.held.replay, schedule, clock=clock)
        return step.outcome(seconds)
