"""Energy projection on the device by the fast schedule; see `solvers.alternation`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.engines.passes import StreamPass
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Float


@dataclass(frozen=True)
class AlternationSettings:
    """E(x) = p |x - f(x)|^2 + lam |x - x_0|_1, or DSSIM in place of the first term.

    Args:
        precision: p, 1 / (2 gamma^2) of a decoder with one variance.
        data_range: of DSSIM; None for the squared error.
        by_element: p is 1 / (2 g^2), g the exponential of the engine's output 'log_scale', and
            the first term gains log g.
    """

    lam: float
    precision: float
    lower: float
    upper: float
    data_range: float | None = None
    by_element: bool = False


class DeviceAlternation:
    """A step for one batch size: x <- x_0 + shrink(f(x) - x_0, lam / (2 p)).

    With s = 2 p (x - y), the gradient of p |x - y|^2 with y = f(x) held fixed, this is the proximal
    step of `energy_step` with the rate 1 / (2 p): x - s / (2 p) = y, shrunk by lam / (2 p). A p of
    every element is a weight 1 / (2 p) of a step with the rate 1.

    Args:
        engine: input 'image', output 'reconstruction', (B, C, h, w) both; the search moves the
            input in place.
    """

    def __init__(
        self, kernels: CudaKernels, engine: StreamPass, settings: AlternationSettings, ends: Ends
    ) -> None:
        self.kernels, self.engine, self.settings = kernels, engine, settings
        self.capturable = engine.capturable
        device, self.x = kernels.device, engine.inputs["image"]
        shape, batch = self.x.shape, self.x.shape[0]
        self.progress = Progress(device, batch, ends)
        self._first, self._before, self._pulled, self.best = (device.empty(shape) for _ in range(4))
        self._lam, self._rate, self._scale, self._one = (device.empty((batch,)) for _ in range(4))
        sums = (device.empty((batch,), np.float64) for _ in range(5))
        self._loss, self._shown, self._l1, self._squared, self._change = sums
        self._weight = self._unused = None
        if settings.by_element:
            scales = engine.outputs["log_scale"].shape
            self._weight, self._unused = device.empty(scales), device.empty(scales)

    def start(self, images: Float) -> None:
        """Begin at images (B, C, h, w).

        Raises: ShapeError for another shape than the engine's.
        """
        if images.shape != self.x.shape:
            raise ShapeError(f"images must be {self.x.shape}, found {images.shape}.")
        device, batch, s = self.kernels.device, len(images), self.settings
        for array, host in ((self.x, images), (self._first, images), (self.best, images)):
            device.upload(array, np.ascontiguousarray(host, np.float32))
        for array, number in (
            (self._lam, s.lam),
            (self._rate, 1.0 if s.by_element else 0.5 / s.precision),
            (self._scale, s.precision),
            (self._one, 1.0),
        ):
            device.upload(array, np.full(batch, number, np.float32))
        self.progress.reset()

    def enqueue(self) -> None:
        """See `Step`."""
        kernels, x, s = self.kernels, self.x, self.settings
        self.engine.enqueue(kernels.stream)
        made = self.engine.outputs["reconstruction"]
        self._compare(made)
        kernels.device.copy(self._before, x)
        kernels.energy_step(
            x, self._first, self._pulled, self._lam, self._rate, direct=None, mask=self._weight,
            restored=None, first=None, second=None, l1=self._l1, squared_change=self._squared,
            largest_change=self._change, proximal=True, lower=s.lower, upper=s.upper,
        )  # fmt: skip
        self.progress.settle(
            self._measured(made), extra=self._l1, change=self._change, rate=self._rate
        )
        self.progress.keep(self._before, self.best)

    def _compare(self, made: DeviceArray) -> None:
        """The first term and its gradient with y held fixed."""
        kernels, x, scale = self.kernels, self.x, self._scale
        if self._weight is None:
            kernels.residual_l2(made, x, scale, cotangent=self._pulled, objective=self._loss)
            return
        log_scale = self.engine.outputs["log_scale"]
        kernels.gaussian_nll(
            made, x, log_scale, scale, cotangent=self._pulled, log_scale_cotangent=self._unused,
            objective=self._loss,
        )  # fmt: skip
        kernels.half_variance(log_scale, out=self._weight)

    def _measured(self, made: DeviceArray) -> DeviceArray:
        """L_r at the x of before the step: the squared error is there already."""
        if self.settings.data_range is None:
            return self._loss
        self.kernels.dssim(
            self._before, made, self._one, data_range=self.settings.data_range, dissimilarity=None,
            direct=None, cotangent=None, objective=self._shown,
        )  # fmt: skip
        return self._shown

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host."""
        return self.progress.outcome((self.best,), seconds)
