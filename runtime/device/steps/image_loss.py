"""Reconstruction losses on the device, the best mask put in or the mask known; see `losses`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.solvers.protocol import Bool, Float


@dataclass(frozen=True)
class LossSettings:
    """As `RgiMethod`; `known`: the mask is given with the images, and the norm is l2."""

    norm: str = "l2"
    shared: bool = True
    masked: bool = True
    known: bool = False


class DeviceImageLoss:
    """Loss between inspected images x and generated images, both (B, C, h, w).

    Attributes:
        objective: (B,) float64. mask: (B, 1 or C, h, w), where it is searched; the weight of the
            elements, where it is known; else None.
    """

    def __init__(
        self, kernels: CudaKernels, shape: tuple[int, ...], settings: LossSettings
    ) -> None:
        self._kernels, self._settings = kernels, settings
        device, batch = kernels.device, shape[0]
        channels = 1 if settings.shared or settings.known else shape[1]
        self.x, self._scale = device.empty(shape), device.empty((batch,))
        self.objective = device.empty((batch,), np.float64)
        self.mask: DeviceArray | None = None
        if settings.masked or settings.known:
            self.mask = device.empty((batch, channels, *shape[2:]))

    def start(self, images: Float, free: Bool | None = None) -> None:
        """Take images (B, C, h, w), and (B, 1, h, w) what of them is not known."""
        device, size = self._kernels.device, np.full(len(images), images[0].size, np.float64)
        device.upload(self.x, np.ascontiguousarray(images, np.float32))
        if free is not None and self.mask is not None:
            known = (~free).astype(np.float32)
            device.upload(self.mask, known)
            size = np.maximum(known.sum(axis=(1, 2, 3), dtype=np.float64) * images.shape[1], 1)
        device.upload(self._scale, (1 / size).astype(np.float32))

    def enqueue(self, g: DeviceArray, lam: DeviceArray, cotangent: DeviceArray) -> None:
        """Write `cotangent` and `objective` at images g; lam: (B,) float32."""
        kernels, s = self._kernels, self._settings
        outputs = {"cotangent": cotangent, "objective": self.objective}
        if s.masked and not s.known:
            closed = kernels.rgi_closed_form if s.norm == "l2" else kernels.rgi_closed_form_l1
            closed(self.x, g, lam, self._scale, mask=self.mask, **outputs)
        else:
            residual = kernels.residual_l1 if s.norm == "l1" else kernels.residual_l2
            residual(self.x, g, self._scale, weight=self.mask, **outputs)
