"""L-BFGS on the device; see `solvers.lbfgs`, whose steps these are."""

from __future__ import annotations

import numpy as np

from unblemish.errors import ConfigError
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.protocol import Float

_PAIRS = 8  # as kernels/cuda/lbfgs.cu


class DeviceLbfgs:
    """The state of `Lbfgs` for the rows of `query`, in memory of fixed address.

    A step is `step`, then whatever decides about the items, then `aim`, which writes the next
    query. An item that has ended is left as it is.

    Args:
        solver: its settings; the scale is taken now.
        query, gradient: (B, ...) where the objective is wanted next, and its gradient there.
    Raises: ConfigError for another memory than 8 pairs.
    """

    def __init__(
        self, device: Device, solver: Lbfgs, query: DeviceArray, gradient: DeviceArray
    ) -> None:
        if solver.memory != _PAIRS:
            raise ConfigError(f"L-BFGS on the device keeps {_PAIRS} pairs; got {solver.memory}.")
        self._device, self._solver, self._query = device, solver, query
        self.batch = query.shape[0]
        self.size = query.size // self.batch
        row, pairs = (self.batch, self.size), (self.batch, _PAIRS, self.size)
        self._rows = {name: device.empty(row, np.float64) for name in ("u", "trial")}
        self._cleared = {
            **{name: device.empty(row, np.float64) for name in ("gradient", "direction")},
            **{name: device.empty(pairs, np.float64) for name in ("s", "y")},
            "rho": device.empty((self.batch, _PAIRS), np.float64),
            "newest": device.empty((self.batch,), np.int32),
            "moved": device.empty((self.batch,), np.int32),
            "stuck": device.empty((self.batch,), np.int32),
        }
        self._numbers = {name: device.empty((self.batch,), np.float64) for name in _NUMBERS}
        self.fresh = device.empty((self.batch,), np.int32)
        self._scale = None if solver.scale is None else device.to_device(solver.scale)
        self._given = gradient

    @property
    def seen(self) -> DeviceArray:
        """Values (B,) of the last step, infinite where something was not finite."""
        return self._numbers["seen"]

    @property
    def moved(self) -> DeviceArray:
        """Items (B,) whose last step was taken."""
        return self._cleared["moved"]

    @property
    def stuck(self) -> DeviceArray:
        """Items (B,) that no further step can improve."""
        return self._cleared["stuck"]

    @property
    def arrays(self) -> dict[str, DeviceArray]:
        """Everything that is kept from step to step, rows in front."""
        state = self._rows | self._cleared | self._numbers
        return {**state, "fresh": self.fresh, "query": self._query}

    def start(self, z: Float) -> None:
        """Begin at z, (B, n)."""
        device = self._device
        scale = 1.0 if self._solver.scale is None else self._solver.scale
        u = z.reshape(self.batch, self.size) / np.asarray(scale, np.float64)
        for array in self._rows.values():
            device.upload(array, u)
        for array in self._cleared.values():
            device.driver.fill(array.pointer, 0, array.nbytes // 4)
        for name, value in _NUMBERS.items():
            device.upload(self._numbers[name], np.full(self.batch, value))
        device.upload(self.fresh, np.ones(self.batch, np.int32))
        device.upload(self._query, np.asarray(z, np.float32).reshape(self._query.shape))

    def step(self, objective: DeviceArray, ended: DeviceArray) -> None:
        """Take in the values (B,) float64 and the gradients at the query."""
        state, solver = self.arrays, self._solver
        self._device.launch(
            "lbfgs_step", (self.batch, 1), **state, objective=objective, loss_gradient=self._given,
            scale=self._scale, ended=ended, first_bound=solver.first, longest_bound=solver.longest,
            size=self.size,
        )  # fmt: skip

    def aim(self, ended: DeviceArray) -> None:
        """Write the next query."""
        self._device.launch(
            "lbfgs_trial", self._device.rows(self.batch, self.size, 1), **self.arrays,
            scale=self._scale, ended=ended, batch=self.batch, size=self.size,
        )  # fmt: skip


_NUMBERS = {"value": np.inf, "length": 1.0, "seen": np.inf}
