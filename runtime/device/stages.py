"""What a search in stages keeps about its items on the device; see `solvers.loop`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.device.steps.lbfgs import DeviceLbfgs
from unblemish.runtime.solvers.loop import INTERIM, Outcome
from unblemish.runtime.solvers.protocol import Double, Float

_MOST_STAGES = 3


class StagedProgress(Progress):
    """Bookkeeping of a search whose objective changes from stage to stage, lam = target x rung.

    What differs between searches of a batch size lies on the device, so that a captured step
    serves all of them.

    Attributes:
        lam: (B,) float32, of every item's stage.
    """

    def __init__(self, device: Device, batch: int, ends: Ends) -> None:
        super().__init__(device, batch, ends)
        self.lam = device.empty((batch,))
        self._target, self._rungs = device.empty((batch,)), device.empty((_MOST_STAGES,))
        self._plan = device.empty((2,), np.int32)
        self._floor, self._opening = (device.empty((batch,), np.float64) for _ in range(2))
        self._stage, self._taken = (device.empty((batch,), np.int32) for _ in range(2))

    @property
    def arrays(self) -> dict[str, DeviceArray]:
        """Everything that is kept from step to step, rows in front."""
        return {
            "trace": self._trace, "window": self._best_by_step, "best": self._best,
            "opening": self._opening, "lam": self.lam, "target": self._target,
            "floor": self._floor, "stage": self._stage, "taken": self._taken,
            "steps": self._steps, "ended": self.ended,
        }  # fmt: skip

    def begin(self, target: Float, rungs: Float, race: int, floor: float) -> None:
        """Begin a search.

        Args:
            target: lam of the last stage, (B,). rungs: what it is multiplied by, by stage.
            race: steps before which no stage is flat. floor: see `Limits`.
        """
        self.reset()
        multiples = np.ones(_MOST_STAGES, np.float32)
        multiples[: len(rungs)] = rungs
        uploads = (
            (self._rungs, multiples),
            (self._plan, np.array([len(rungs), race])),
            (self._target, target),
            (self.lam, target * multiples[0]),
            (self._floor, np.full(self.batch, floor)),
            (self._opening, np.full(self.batch, np.inf)),
            (self._stage, np.zeros(self.batch)),
            (self._taken, np.zeros(self.batch)),
        )
        for array, host in uploads:
            self._device.upload(array, np.ascontiguousarray(host, array.dtype))

    def follow(self, other: StagedProgress) -> None:
        """Take over the plan of another search; its items come by `arrays`."""
        self._device.copy(self._rungs, other._rungs)
        self._device.copy(self._plan, other._plan)

    def settle_stages(self, solver: DeviceLbfgs) -> None:
        """Take in what the solver has seen: on to the next stage, or out of the search."""
        e = self.ends
        self._device.launch(
            "settle_stages", self._device.rows(1, self.batch, 1), **self.arrays, value=solver.seen,
            moved=solver.moved, stuck=solver.stuck, fresh=solver.fresh, plan=self._plan,
            rungs=self._rungs, tolerance=e.tolerance, interim=INTERIM, patience=e.patience,
            most=e.most, better=self._better, batch=self.batch,
        )  # fmt: skip

    @property
    def opening(self) -> Double:
        """Best values (B,) of the first stage, on the host: what starts race by."""
        return self._device.to_host(self._opening)

    def outcome(self, best: tuple[DeviceArray, ...], seconds: float) -> Outcome:
        """See `Progress`; with the stages reached."""
        stage = self._device.to_host(self._stage).astype(np.intp)
        return replace(super().outcome(best, seconds), stage=stage)
