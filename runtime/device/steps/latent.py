"""Searches of the latent alone on the device: L-BFGS in stages, and Adam; see `methods.rgi`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adam_steps
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.device.stages import StagedProgress
from unblemish.runtime.device.steps.image_loss import DeviceImageLoss, LossSettings
from unblemish.runtime.device.steps.inversion import GeneratorPasses
from unblemish.runtime.device.steps.lbfgs import DeviceLbfgs
from unblemish.runtime.device.steps.terms import DeviceTerm
from unblemish.runtime.solvers.lbfgs import Lbfgs
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Bool, Float, Index


class _Objective:
    """min over z of loss(x, G(z); lam) + further terms + weight mean z^2, for one batch size."""

    def __init__(
        self,
        kernels: CudaKernels,
        passes: GeneratorPasses,
        loss: LossSettings,
        weight: float,
        terms: Sequence[DeviceTerm],
    ) -> None:
        self.kernels, self.passes, self._weight, self._terms = kernels, passes, weight, terms
        self.capturable = passes.capturable and all(term.pair.capturable for term in terms)
        self.loss = DeviceImageLoss(kernels, passes.image.shape, loss)
        self.best = kernels.device.empty(passes.latent.shape)

    def place(self, images: Float, z: Float, free: Bool | None) -> None:
        """Take images and first latents.

        Raises: ShapeError for other shapes than the engine's.
        """
        shape, latent = self.passes.image.shape, self.passes.latent
        if images.shape != shape or z.size != latent.size:
            raise ShapeError(
                f"images and latents must be {shape} and {latent.shape}, found {images.shape} and "
                f"{z.shape}."
            )
        first = np.ascontiguousarray(z, np.float32).reshape(latent.shape)
        for array in (latent, self.best):
            self.kernels.device.upload(array, first)
        self.loss.start(images, free)

    def evaluate(self, lam: DeviceArray) -> None:
        """Put value and gradient at the latent on the stream."""
        p, kernels = self.passes, self.kernels
        p.forward.enqueue(kernels.stream)
        self.loss.enqueue(p.image, lam, p.cotangent)
        for term in self._terms:
            term.enqueue(
                self.loss.x, p.image, self.loss.mask, cotangent=p.cotangent,
                objective=self.loss.objective,
            )  # fmt: skip
        p.backward.enqueue(kernels.stream)
        kernels.latent_prior(
            p.latent, self._weight, gradient=p.gradient, objective=self.loss.objective
        )


class DeviceLatentLbfgs:
    """A step of L-BFGS on the latents while lam falls from stage to stage.

    Args:
        weight: of mean z^2.
        terms: whoever makes them begins them, after `start` or `go_on`.
    """

    def __init__(
        self,
        kernels: CudaKernels,
        passes: GeneratorPasses,
        loss: LossSettings,
        solver: Lbfgs,
        ends: Ends,
        *,
        weight: float = 0.0,
        terms: Sequence[DeviceTerm] = (),
    ) -> None:
        self._objective = _Objective(kernels, passes, loss, weight, terms)
        self.capturable, self.x = self._objective.capturable, self._objective.loss.x
        self.solver = DeviceLbfgs(kernels.device, solver, passes.latent, passes.gradient)
        self.progress = StagedProgress(kernels.device, passes.latent.shape[0], ends)

    def start(
        self,
        images: Float,
        z: Float,
        target: Float,
        *,
        rungs: Float,
        race: int = 0,
        floor: float = 0.0,
        free: Bool | None = None,
    ) -> None:
        """Begin at latents z (B, n) for images (B, C, h, w).

        Args:
            target: lam of the last stage, (B,). rungs: what it is multiplied by, by stage.
            race: steps before which no stage ends as flat. floor: see `Limits`.
            free: (B, 1, h, w), the mask where it is known.
        Raises: ShapeError for other shapes than the engine's.
        """
        self._objective.place(images, z, free)
        self.solver.start(z)
        self.progress.begin(target, rungs, race, floor)

    def go_on(
        self,
        other: DeviceLatentLbfgs,
        rows: Index,
        idle: Bool,
        images: Float,
        free: Bool | None = None,
    ) -> None:
        """Go on where the rows (B,) of another step are, but for `idle` ones, which stay there."""
        device = self._objective.kernels.device
        self._objective.loss.start(images, free)
        self.progress.follow(other.progress)
        for name, array in self._arrays.items():
            host = device.to_host(other._arrays[name])[rows]
            if array is self.progress.ended:
                host[idle] = 1
            device.upload(array, host)

    @property
    def _arrays(self) -> dict[str, DeviceArray]:
        kept = {f"progress {name}": a for name, a in self.progress.arrays.items()}
        return self.solver.arrays | kept | {"best z": self._objective.best}

    def enqueue(self) -> None:
        """See `Step`."""
        ended = self.progress.ended
        self._objective.evaluate(self.progress.lam)
        self.solver.step(self._objective.loss.objective, ended)
        self.progress.settle_stages(self.solver)
        self.progress.keep(self._objective.passes.latent, self._objective.best)
        self.solver.aim(ended)

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host."""
        return self.progress.outcome((self._objective.best,), seconds)


class DeviceLatentAdam:
    """A step of Adam on the latents, without a search for the mask; see `DeviceLatentLbfgs`."""

    def __init__(
        self,
        kernels: CudaKernels,
        passes: GeneratorPasses,
        loss: LossSettings,
        ends: Ends,
        *,
        rate: float = 0.1,
        weight: float = 0.0,
        terms: Sequence[DeviceTerm] = (),
    ) -> None:
        self._objective = _Objective(kernels, passes, loss, weight, terms)
        self.capturable, self.x = self._objective.capturable, self._objective.loss.x
        device, z = kernels.device, passes.latent
        self.progress = Progress(device, z.shape[0], ends)
        self._lam = device.empty((z.shape[0],))
        self._moments = device.empty(z.shape), device.empty(z.shape)
        self._steps = device.to_device(adam_steps(ends.most, rate))

    def start(self, images: Float, z: Float, lam: Float, free: Bool | None = None) -> None:
        """Begin at latents z (B, n) for images (B, C, h, w); see `DeviceLatentLbfgs`."""
        device = self._objective.kernels.device
        self._objective.place(images, z, free)
        device.upload(self._lam, np.ascontiguousarray(lam, np.float32))
        for array in self._moments:
            device.driver.fill(array.pointer, 0, array.size)
        self.progress.reset()

    def enqueue(self) -> None:
        """See `Step`."""
        p, kernels = self._objective.passes, self._objective.kernels
        self._objective.evaluate(self._lam)
        self.progress.settle(self._objective.loss.objective)
        self.progress.keep(p.latent, self._objective.best)
        kernels.adam_scheduled(
            p.latent, p.gradient, *self._moments, steps=self._steps, at=self.progress.at
        )

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host."""
        return self.progress.outcome((self._objective.best,), seconds)
