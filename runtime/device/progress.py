"""What a search on the device keeps about its items: best, steps, trace, how each ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.inspection import Status
from unblemish.runtime.solvers.loop import Limits, Outcome
from unblemish.runtime.solvers.protocol import Index

_STATUS = (Status.DEADLINE, Status.MAX_STEPS, Status.CONVERGED, Status.NON_FINITE)


@dataclass(frozen=True)
class Ends:
    """When an item ends by itself; as in `Limits`.

    Args:
        least: it has arrived where nothing changes by more.
    """

    most: int
    tolerance: float = 0.0
    patience: int = 5
    floor: float = 0.0
    least: float = 0.0

    @staticmethod
    def of(limits: Limits, least: float = 0.0) -> Ends:
        """The part of `Limits` that is decided on the device."""
        return Ends(limits.max_steps, limits.tolerance, limits.patience, limits.floor, least)


class Progress:
    """Bookkeeping of `batch` items, in memory of fixed address.

    Source: `solvers.loop`, whose rules these are: an item that has ended changes no more, however
    many further iterations are on the stream.
    """

    def __init__(self, device: Device, batch: int, ends: Ends) -> None:
        self._device, self.batch, self.ends = device, batch, ends
        self.ended = device.empty((batch,), np.int32)
        self._steps = device.empty((batch,), np.int32)
        self._better = device.empty((batch,), np.int32)
        self._best = device.empty((batch,), np.float64)
        self._trace = device.empty((batch, ends.most), np.float64)
        self._best_by_step = device.empty((batch, ends.most), np.float64)
        self.at = device.empty((1,), np.int32)

    def reset(self) -> None:
        """Begin a search."""
        for array in (self.ended, self._steps):
            self._device.upload(array, np.zeros(array.shape, np.int32))
        self._device.upload(self._best, np.full(self.batch, np.inf))
        self._device.upload(self.at, np.full(1, -1, np.int32))

    def settle(
        self,
        objective: DeviceArray,
        *,
        extra: DeviceArray | None = None,
        change: DeviceArray | None = None,
        rate: DeviceArray | None = None,
        guard: DeviceArray | None = None,
    ) -> None:
        """Take in the values of an evaluation, (B,) float64; `rate` of ended items becomes 0.

        Args:
            guard: (B,) float64, of the gradient or the image; an item has failed where it is not
                finite.
        """
        e = self.ends
        self._device.launch(
            "settle", self._device.rows(1, self.batch, 1), objective=objective, extra=extra,
            change=change, guard=guard, rate=rate, least=e.least, tolerance=e.tolerance,
            patience=e.patience, floor=e.floor, most=e.most, trace=self._trace,
            best_by_step=self._best_by_step, best=self._best, better=self._better,
            ended=self.ended, steps=self._steps, at=self.at, batch=self.batch,
        )  # fmt: skip

    def recent_change(self, objective: DeviceArray, change: DeviceArray) -> None:
        """Before `settle`: how much the value changed at most in the last `patience` steps.

        Args:
            change: out, (B,) float64; infinity in the first steps.
        """
        self._device.launch(
            "recent_change", self._device.rows(1, self.batch, 1), value=objective,
            trace=self._trace, steps=self._steps, change=change, most=self.ends.most,
            patience=self.ends.patience, batch=self.batch,
        )  # fmt: skip

    def keep(self, x: DeviceArray, kept: DeviceArray) -> None:
        """Copy the items of x whose last value was their best."""
        length = x.size // self.batch
        self._device.launch(
            "keep_rows", self._device.rows(self.batch, length), x=x, chosen=self._better,
            kept=kept, batch=self.batch, length=length,
        )  # fmt: skip

    def outcome(self, best: tuple[DeviceArray, ...], seconds: float) -> Outcome:
        """Copy everything to the host."""
        get = self._device.to_host
        steps: Index = get(self._steps).astype(np.intp)
        trace: NDArray[np.float64] = get(self._trace)
        return Outcome(
            best=tuple(get(group) for group in best),
            value=get(self._best),
            stage=np.zeros(self.batch, np.intp),
            status=tuple(_STATUS[code] for code in get(self.ended)),
            steps=steps,
            trace=tuple(row[:count].copy() for row, count in zip(trace, steps, strict=True)),
            seconds=seconds,
        )
