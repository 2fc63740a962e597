"""Holes filled on the device by the fast schedule; see `solvers.blending`."""

from __future__ import annotations

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.device.engines.passes import StreamPass
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Bool, Float


class DeviceBlending:
    """A step for one batch size: x <- y + (x - y carried into the hole), y the reconstruction of x.

    The value is the `roughness` of x - y. An item whose reconstruction is not finite ends with the
    best it had.

    Args:
        engine: input 'image', output 'reconstruction', (B, C, h, w) both; the search moves the
            input in place.
        lower, upper: valid range of the images.
    """

    def __init__(
        self, kernels: CudaKernels, engine: StreamPass, ends: Ends, *, lower: float, upper: float
    ) -> None:
        self.kernels, self.engine = kernels, engine
        self.capturable = engine.capturable
        device, self.x = kernels.device, engine.inputs["image"]
        shape, batch = self.x.shape, self.x.shape[0]
        self.progress = Progress(device, batch, ends)
        self._box = {"lower": lower, "upper": upper}
        self._before, self.best = device.empty(shape), device.empty(shape)
        self._free = device.empty((batch, 1, *shape[2:]))
        sums = (device.empty((batch,), np.float64) for _ in range(4))
        self._roughness, self._change, self._size, self._largest = sums

    def start(self, images: Float, free: Bool | None) -> None:
        """Begin at images (B, C, h, w); free: the hole, (B, 1, h, w).

        Raises: ShapeError for other shapes than the engine's, or without a hole.
        """
        given = None if free is None else free.shape
        if images.shape != self.x.shape or free is None or given != self._free.shape:
            raise ShapeError(
                f"images and holes must be {self.x.shape} and {self._free.shape}, found "
                f"{images.shape} and {given}."
            )
        device = self.kernels.device
        for array, host in ((self.x, images), (self.best, images), (self._free, free)):
            device.upload(array, np.ascontiguousarray(host, np.float32))
        self.progress.reset()

    def enqueue(self) -> None:
        """See `Step`."""
        kernels, x = self.kernels, self.x
        self.engine.enqueue(kernels.stream)
        made = self.engine.outputs["reconstruction"]
        kernels.norms(made, squared=self._size, largest=self._largest)
        kernels.device.copy(self._before, x)
        kernels.blend(
            x, made, self._free, ended=self.progress.ended, roughness=self._roughness,
            largest_change=self._change, **self._box,
        )  # fmt: skip
        self.progress.settle(self._roughness, change=self._change, guard=self._size)
        self.progress.keep(self._before, self.best)

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host."""
        return self.progress.outcome((self.best,), seconds)
