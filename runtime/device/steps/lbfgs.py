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
        self._device, self._solver, self._given = device, solver, gradient
        self.batch = query.shape[0]
        self.size = query.size // self.batch
        rows = ("u", "trial", "gradient", "direction")
        reals: dict[str, tuple[int, ...]] = dict.fromkeys(rows, (self.size,))
        reals |= {"s": (_PAIRS, self.size), "y": (_PAIRS, self.size), "rho": (_PAIRS,)}
        reals |= {"value": (), "length": (), "seen": ()}
        flags = ("newest", "fresh", "moved", "stuck")
        self._state = {n: device.empty((self.batch, *s), np.float64) for n, s in reals.items()}
        self._state |= {name: device.empty((self.batch,), np.int32) for name in flags}
        self.arrays = {**self._state, "query": query}  # all that is kept, rows in front
        self._scale = None if solver.scale is None else device.to_device(solver.scale)
        # Values of the last step, infinite where something was not finite; whether it was taken,
        # whether no other can help, and whether the query is to be looked at again.
        self.seen, self.moved, self.stuck, self.fresh = (
            self._state[name] for name in ("seen", "moved", "stuck", "fresh")
        )

    def start(self, z: Float) -> None:
        """Begin at z, (B, n)."""
        device, batch = self._device, self.batch
        for array in self._state.values():
            device.driver.fill(array.pointer, 0, array.nbytes // 4)
        scale = np.ones(self.size) if self._solver.scale is None else self._solver.scale
        u = z.reshape(batch, self.size) / scale
        begin = {"u": u, "trial": u, "value": np.full(batch, np.inf), "length": np.ones(batch)}
        for name, host in begin.items():
            device.upload(self._state[name], host)
        device.upload(self.fresh, np.ones(batch, np.int32))
        query = self.arrays["query"]
        device.upload(query, np.ascontiguousarray(z, np.float32).reshape(query.shape))

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
