"""Energy projection on the device by the paper's schedule; see `solvers.projected_step`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adam_steps
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Bool, Float


@dataclass(frozen=True)
class DescentSettings:
    """E(x) = L_r(x) + lam |x - x_0|_1, descended as `ProjectedStep` does.

    Args:
        loss: 'l2', 'dssim' or 'gaussian'; see `EnergySettings`.
        scale: what squared errors are multiplied with. data_range: of DSSIM.
        stops: an item has arrived where L_r <= `Ends.least`.
    """

    lam: float
    alpha: float
    tuned: bool
    adam: bool
    lower: float
    upper: float
    loss: str = "l2"
    scale: float = 1.0
    data_range: float = 1.0
    stops: bool = False


class DeviceDescent:
    """A step for one batch size: x <- clip(x - alpha w (g + lam sign(x - x_0))).

    An item whose value or gradient is not finite ends with the best it had.

    Args:
        passes: input 'image', outputs 'reconstruction' and, where each element has a variance of
            its own, 'log_scale'. The search moves the input in place.
        known: pixels that may move are given to `start`.
    Source: seed 002, eqs. 5, 7 and 8.
    """

    def __init__(
        self,
        kernels: CudaKernels,
        passes: PassPair,
        settings: DescentSettings,
        ends: Ends,
        *,
        known: bool = False,
    ) -> None:
        self.kernels, self.passes, self.settings = kernels, passes, settings
        self.capturable = passes.capturable
        device, self.x = kernels.device, passes.forward.inputs["image"]
        shape, batch, s = self.x.shape, self.x.shape[0], settings
        self.progress = Progress(device, batch, ends)
        self._first, self._before, self.best = (device.empty(shape) for _ in range(3))
        self._free = device.empty((batch, 1, *shape[2:])) if known else None
        self._direct = device.empty(shape) if s.loss == "dssim" else None
        self._moments = (device.empty(shape), device.empty(shape)) if s.adam else None
        self._lam, self._rate, self._scale = (device.empty((batch,)) for _ in range(3))
        sums = (device.empty((batch,), np.float64) for _ in range(6))
        self._loss, self._l1, self._squared, self._change, self._slope, self._steepest = sums
        table = adam_steps(ends.most, 1.0, lower=s.lower, upper=s.upper)
        self._steps = device.to_device(table)

    def start(self, images: Float, free: Bool | None = None) -> None:
        """Begin at images (B, C, h, w); free: (B, 1, h, w), where they may move.

        Raises: ShapeError for other shapes than the engine's, or without what was announced.
        """
        wanted = None if self._free is None else self._free.shape
        given = None if free is None else free.shape
        if (images.shape, given) != (self.x.shape, wanted):
            raise ShapeError(
                f"images and known pixels must be {self.x.shape} and {wanted}, found "
                f"{images.shape} and {given}."
            )
        device, batch, s = self.kernels.device, len(images), self.settings
        for array in (self.x, self._first, self.best):
            device.upload(array, np.ascontiguousarray(images, np.float32))
        if self._free is not None and free is not None:
            device.upload(self._free, np.ascontiguousarray(free, np.float32))
        numbers = ((self._lam, s.lam), (self._rate, s.alpha), (self._scale, s.scale))
        for array, number in numbers:
            device.upload(array, np.full(batch, number, np.float32))
        for array in self._moments or ():
            device.driver.fill(array.pointer, 0, array.size)
        self.progress.reset()

    def enqueue(self) -> None:
        """See `Step`."""
        kernels, passes = self.kernels, self.passes
        passes.forward.enqueue(kernels.stream)
        self._measure()
        passes.backward.enqueue(kernels.stream)
        pulled = passes.gradients["image"]
        kernels.norms(pulled, squared=self._slope, largest=self._steepest)
        kernels.device.copy(self._before, self.x)
        self._descend()
        self.progress.settle(
            self._loss, extra=self._l1, change=self._loss if self.settings.stops else None,
            rate=self._rate, guard=self._slope,
        )  # fmt: skip
        self.progress.keep(self._before, self.best)

    def _measure(self) -> None:
        """L_r, the cotangents of the outputs, and of DSSIM the gradient where x itself stands."""
        kernels, x, outputs = self.kernels, self.x, self.passes.forward.outputs
        made, cotangents = outputs["reconstruction"], self.passes.cotangents
        cotangent, value = cotangents["reconstruction"], self._loss
        if self.settings.loss == "dssim":
            kernels.dssim(
                x, made, self._scale, data_range=self.settings.data_range, dissimilarity=None,
                direct=self._direct, cotangent=cotangent, objective=value,
            )  # fmt: skip
        elif self.settings.loss == "gaussian" and "log_scale" in outputs:
            kernels.gaussian_nll(
                x, made, outputs["log_scale"], self._scale, cotangent=cotangent,
                log_scale_cotangent=cotangents["log_scale"], objective=value,
            )  # fmt: skip
        else:
            kernels.residual_l2(x, made, self._scale, cotangent=cotangent, objective=value)

    def _descend(self) -> None:
        """Of squared errors the direct gradient is minus the cotangent."""
        s, made = self.settings, self.passes.forward.outputs["reconstruction"]
        errors = self._direct is None
        first, second = self._moments or (None, None)
        self.kernels.energy_step_scheduled(
            self.x, self._first, self.passes.gradients["image"], self._lam, self._rate,
            direct=self.passes.cotangents["reconstruction"] if errors else self._direct,
            mask=self._free, restored=made if s.tuned else None, first=first, second=second,
            l1=self._l1, squared_change=self._squared, largest_change=self._change,
            steps=self._steps, at=self.progress.at, direct_factor=-1.0 if errors else 1.0,
        )  # fmt: skip

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host."""
        return self.progress.outcome((self.best,), seconds)
