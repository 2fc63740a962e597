"""Fine-tuning of a generator's weights on the device; see `methods.rrgi`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.cuda.steps import adam_steps
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.device.steps.image_loss import DeviceImageLoss, LossSettings
from unblemish.runtime.device.steps.inversion import GeneratorPasses
from unblemish.runtime.device.steps.terms import DeviceTerm
from unblemish.runtime.methods.rrgi import Tuning
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Float

_ALIGNMENT = 64  # floats: 256 bytes, what an allocation begins at
_CHUNK = 1 << 13  # floats: what a block takes at once, so that weights of any size fill the chip


class WeightMemory:
    """Weights one behind the other, each aligned as an allocation: all are copied at once.

    Args:
        shapes: of the weights, by name; 0 at first.
    Attributes: flat (1, n) is all of them, parts[name] each.
    """

    def __init__(self, device: Device, shapes: Mapping[str, tuple[int, ...]]) -> None:
        places, total = {}, 0
        for name, shape in shapes.items():
            places[name] = total
            total += -(-int(np.prod(shape, dtype=np.int64)) // _ALIGNMENT) * _ALIGNMENT
        self.flat = device.zeros((1, total))
        self.parts = {name: _part(self.flat, at, shapes[name]) for name, at in places.items()}

    @staticmethod
    def holding(device: Device, weights: Mapping[str, NDArray[np.float32]]) -> WeightMemory:
        """Memory with a copy of host arrays in it."""
        memory = WeightMemory(device, {name: array.shape for name, array in weights.items()})
        for name, array in weights.items():
            device.upload(memory.parts[name], array)
        return memory


def chunk_table(weights: WeightMemory, gradients: Mapping[str, DeviceArray]) -> NDArray[np.uint64]:
    """The gradients in pieces of one length, (N, 3): see `CudaKernels.adam_chunks`."""
    rows = []
    for name, gradient in gradients.items():
        begin = (weights.parts[name].pointer - weights.flat.pointer) // 4
        for first in range(0, gradient.size, _CHUNK):
            count = min(_CHUNK, gradient.size - first)
            rows.append((gradient.pointer + 4 * first, begin + first, count))
    return np.array(rows, np.uint64)


def _part(flat: DeviceArray, at: int, shape: tuple[int, ...]) -> DeviceArray:
    return replace(flat, pointer=flat.pointer + 4 * at, shape=shape, strides=(), owner=flat)


@dataclass(frozen=True)
class WeightPasses:
    """A generator whose weights are inputs, and its way back, for a batch of 1.

    Args:
        gradients: weight -> where the way back writes its gradient.
    """

    generator: GeneratorPasses
    gradients: Mapping[str, DeviceArray]

    @staticmethod
    def of(pair: PassPair, latent: str, image: str) -> WeightPasses:
        """Of a pair that is differentiated by its latent and by its weights."""
        forward, gradients = pair.forward, dict(pair.gradients)
        generator = GeneratorPasses(
            forward, pair.backward, forward.inputs[latent], forward.outputs[image],
            pair.cotangents[image], gradients.pop(latent),
        )  # fmt: skip
        return WeightPasses(generator, gradients)


class DeviceFinetuning:
    """A step of Adam on latent and weights, the mask put in closed form.

    The objective is that of `FinetuneInversion`. An evaluation whose value or gradient is not
    finite ends the search with the best weights it had.

    Args:
        weights: what the passes read, and the search moves in place. As they are now they are the
            start of every search.
        loss: the norm, and whether one mask serves all channels.
        weight: of mean z^2.
    """

    def __init__(
        self,
        kernels: CudaKernels,
        passes: WeightPasses,
        weights: WeightMemory,
        tuning: Tuning,
        loss: LossSettings,
        *,
        weight: float = 0.0,
        terms: Sequence[DeviceTerm] = (),
    ) -> None:
        self.kernels, self.passes, self.weights = kernels, passes, weights
        self._hold, self._weight, self._terms = tuning.hold, weight, terms
        device, image, z = kernels.device, passes.generator.image, passes.generator.latent
        self.capturable = passes.generator.capturable and all(t.pair.capturable for t in terms)
        self.progress = Progress(device, 1, Ends(tuning.steps))
        self._loss = DeviceImageLoss(kernels, image.shape, loss)
        self._lam, self._before = device.empty((1,)), device.empty(image.shape)
        self._hold_scale = device.to_device(np.full(1, tuning.hold / image.size, np.float32))
        self._exported, self._best_weights = (device.empty(weights.flat.shape) for _ in range(2))
        device.copy(self._exported, weights.flat)
        self._best_z = device.empty(z.shape)
        self._moments = device.empty(weights.flat.shape), device.empty(weights.flat.shape)
        self._chunks = device.to_device(chunk_table(weights, passes.gradients))
        self._z_moments = device.empty(z.shape), device.empty(z.shape)
        self._z_steps = device.to_device(adam_steps(tuning.steps, tuning.latent_rate))
        self._weight_steps = device.to_device(adam_steps(tuning.steps, tuning.rate))

    def start(self, image: Float, z: Float, lam: float) -> None:
        """Begin at latent z (1, n) and the exported weights, for an image (1, C, h, w).

        Raises: ShapeError for other shapes than the engine's.
        """
        device, p = self.kernels.device, self.passes.generator
        if image.shape != p.image.shape or z.size != p.latent.size:
            raise ShapeError(
                f"image and latent must be {p.image.shape} and {p.latent.shape}, found "
                f"{image.shape} and {z.shape}."
            )
        first = np.ascontiguousarray(z, np.float32).reshape(p.latent.shape)
        for array in (p.latent, self._best_z):
            device.upload(array, first)
        self._loss.start(image)
        device.upload(self._lam, np.full(1, lam, np.float32))
        for flat in (self.weights.flat, self._best_weights):
            device.copy(flat, self._exported)
        for moment in (*self._moments, *self._z_moments):
            device.driver.fill(moment.pointer, 0, moment.size)
        self.progress.reset()
        if self._hold:
            p.forward.enqueue(self.kernels.stream)
            device.copy(self._before, p.image)

    def enqueue(self) -> None:
        """See `Step`."""
        kernels, p, loss = self.kernels, self.passes.generator, self._loss
        added = {"cotangent": p.cotangent, "objective": loss.objective}
        p.forward.enqueue(kernels.stream)
        loss.enqueue(p.image, self._lam, p.cotangent)
        for term in self._terms:
            term.enqueue(loss.x, p.image, loss.mask, **added)
        if self._hold:
            kernels.hold(p.image, self._before, loss.mask, self._hold_scale, **added)
        p.backward.enqueue(kernels.stream)
        kernels.latent_prior(p.latent, self._weight, gradient=p.gradient, objective=loss.objective)
        kernels.void_chunks(self._chunks, objective=loss.objective)
        self.progress.settle(loss.objective)
        self.progress.keep(p.latent, self._best_z)
        self.progress.keep(self.weights.flat, self._best_weights)
        self._move()

    def _move(self) -> None:
        kernels, at, p = self.kernels, self.progress.at, self.passes.generator
        kernels.adam_scheduled(p.latent, p.gradient, *self._z_moments, steps=self._z_steps, at=at)
        kernels.adam_chunks(
            self.weights.flat, *self._moments, table=self._chunks, steps=self._weight_steps, at=at
        )

    def outcome(self, seconds: float) -> tuple[Float, Outcome]:
        """The best image (1, C, h, w), and how the search ended with its z (1, n), on the host."""
        device, p = self.kernels.device, self.passes.generator
        device.copy(p.latent, self._best_z)
        device.copy(self.weights.flat, self._best_weights)
        p.forward.enqueue(self.kernels.stream)
        image: Float = device.to_host(p.image)
        found = self.progress.outcome((self._best_z,), seconds)
        return image, replace(found, best=(found.best[0].reshape(1, -1),))
