"""Robust GAN inversion on the device by the paper's schedule; see `methods.joint`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adam_steps
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.engines.passes import PassPair, StreamPass
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.device.steps.terms import DeviceTerm
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Float


@dataclass(frozen=True)
class GeneratorPasses:
    """A generator and its way back for one batch size, and what their buffers are.

    Args:
        latent: input of `forward`, (B, ...). image: its output, (B, C, h, w).
        cotangent: input of `backward`, as `image`. gradient: its output, as `latent`.
    """

    forward: StreamPass
    backward: StreamPass
    latent: DeviceArray
    image: DeviceArray
    cotangent: DeviceArray
    gradient: DeviceArray

    @property
    def capturable(self) -> bool:
        """Whether both passes may be recorded."""
        return self.forward.capturable and self.backward.capturable

    @staticmethod
    def of(pair: PassPair) -> GeneratorPasses:
        """Of a pair that has one latent and one image."""
        ((image, cotangent),) = pair.cotangents.items()
        ((latent, gradient),) = pair.gradients.items()
        forward = pair.forward
        return GeneratorPasses(
            forward, pair.backward, forward.inputs[latent], forward.outputs[image], cotangent,
            gradient,
        )  # fmt: skip


class DeviceInversion:
    """A step of Adam on latent and mask together, for one batch size.

    min over z and M of mean(((1 - M)(G(z) - x))^2) + lam / (C h w) sum |M|, M unconstrained. An
    item whose value or gradient is not finite ends with the best it had.

    Args:
        shared: one mask for all channels.
        rate: of both groups of variables.
        norm: 'l1' for |(1 - M)(G(z) - x)| instead of the squares.
        weight: of mean z^2.
        terms: whoever makes them begins them, after `start`.
    Source: seed 000, eq. 3, appendices D and G.
    """

    def __init__(
        self,
        kernels: CudaKernels,
        passes: GeneratorPasses,
        ends: Ends,
        *,
        shared: bool = True,
        rate: float = 0.1,
        norm: str = "l2",
        weight: float = 0.0,
        terms: Sequence[DeviceTerm] = (),
    ) -> None:
        self.kernels, self.passes = kernels, passes
        self._differentiate = kernels.rgi_gradient if norm == "l2" else kernels.rgi_gradient_l1
        self._weight, self._terms = weight, terms
        self.capturable = passes.capturable and all(term.pair.capturable for term in terms)
        device, image, z = kernels.device, passes.image, passes.latent
        batch = image.shape[0]
        mask = (batch, 1 if shared else image.shape[1], *image.shape[2:])
        self.progress = Progress(device, batch, ends)
        self.x = device.empty(image.shape)
        self._lam, self._scale = device.empty((batch,)), device.empty((batch,))
        self._objective = device.empty((batch,), np.float64)
        self._mask, self._mask_gradient = device.empty(mask), device.empty(mask)
        self.best = device.empty(z.shape), device.empty(mask)
        self._moments = tuple(device.empty(shape) for shape in (z.shape, z.shape, mask, mask))
        self._steps = device.to_device(adam_steps(ends.most, rate))

    def start(self, images: Float, z: Float, lam: Float) -> None:
        """Begin at latents z for images (B, C, h, w), the mask at 0; lam: (B,).

        Raises: ShapeError for other shapes than the engine's.
        """
        device, latent = self.kernels.device, self.passes.latent
        if images.shape != self.x.shape or z.size != latent.size:
            raise ShapeError(
                f"images and latents must be {self.x.shape} and {latent.shape}, found "
                f"{images.shape} and {z.shape}."
            )
        scale = np.full(len(images), 1.0 / images[0].size)
        for array, host in (
            (self.x, images),
            (latent, z.reshape(latent.shape)),
            (self.best[0], z.reshape(latent.shape)),
            (self._lam, lam),
            (self._scale, scale),
        ):
            device.upload(array, np.ascontiguousarray(host, np.float32))
        for array in (self._mask, self.best[1], *self._moments):
            device.driver.fill(array.pointer, 0, array.size)
        self.progress.reset()

    def enqueue(self) -> None:
        """See `Step`."""
        kernels, p, mask = self.kernels, self.passes, self._mask
        p.forward.enqueue(kernels.stream)
        self._differentiate(
            self.x, p.image, mask, self._lam, self._scale, cotangent=p.cotangent,
            mask_gradient=self._mask_gradient, objective=self._objective,
        )  # fmt: skip
        for term in self._terms:
            term.enqueue(self.x, p.image, mask, cotangent=p.cotangent, objective=self._objective)
        p.backward.enqueue(kernels.stream)
        kernels.latent_prior(p.latent, self._weight, gradient=p.gradient, objective=self._objective)
        self.progress.settle(self._objective)
        self.progress.keep(p.latent, self.best[0])
        self.progress.keep(mask, self.best[1])
        schedule = {"steps": self._steps, "at": self.progress.at}
        first, second, mask_first, mask_second = self._moments
        kernels.adam_scheduled(p.latent, p.gradient, first, second, **schedule)
        kernels.adam_scheduled(mask, self._mask_gradient, mask_first, mask_second, **schedule)

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host: best z and M."""
        return self.progress.outcome(self.best, seconds)
