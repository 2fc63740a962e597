"""F2PAD's descent on the device by the paper's schedule; see `methods.decomposition`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adan_steps
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.detectors.protocol import FEATURES, IMAGE
from unblemish.runtime.device.detectors.cell_scores import DeviceModel
from unblemish.runtime.device.detectors.projection import DeviceView, ViewTables
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.device.memory import own_memory, shaped
from unblemish.runtime.device.progress import Ends, Progress
from unblemish.runtime.methods.decomposition import Prior, Weights
from unblemish.runtime.methods.f2pad_batch import Batch
from unblemish.runtime.solvers.adan import Pixels, Sharing
from unblemish.runtime.solvers.loop import Outcome
from unblemish.runtime.solvers.protocol import Double, Float


@dataclass(frozen=True)
class DecompositionSettings:
    """What is fixed of a bundle's descents.

    Args:
        floor: of eq. (15), units. epsilon: of eq. (8).
        ends: with the decrease below which an item has arrived as `least`, 0 for none.
    """

    prior: Prior | None
    sharing: Sharing | None
    floor: float
    epsilon: float
    ends: Ends


class DeviceDecomposition:
    """A step of Adan on the pixels, for batches of whole model images of one size.

    F(n) = l_n(n) + alpha_1 l_p1(n) + alpha_2 l_p2(n) + beta l_a(x - n), all pixels and cells
    counting. An item whose value or gradient is not finite ends with the best it had.

    Args:
        pair: input 'image', output 'features'; the step writes the image.
        tables: of a view of the size.
    Source: seed 003, eqs. (8), (10)-(15).
    """

    def __init__(
        self,
        kernels: CudaKernels,
        pair: PassPair,
        model: DeviceModel,
        tables: ViewTables,
        settings: DecompositionSettings,
    ) -> None:
        self.kernels, self.pair, self.settings = kernels, pair, settings
        device = kernels.device
        self._own = own_memory(device)
        self._view = DeviceView(device, tables, self._own)
        features = pair.forward.outputs[FEATURES]
        batch, rows, columns, channels = features.shape
        self._grid = rows, columns
        cells = np.arange(rows * columns, dtype=np.int32)
        self._scorer = model.scorer(cells, batch, self._own)
        self.capturable = pair.capturable and self._scorer.capturable
        flat = batch, rows * columns, channels
        self._features = shaped(features, flat)
        self._cotangent = shaped(pair.cotangents[FEATURES], flat)
        self.progress = Progress(device, batch, settings.ends)
        self._allocate(tables.view.base.shape, rows * columns)

    def _allocate(self, shape: tuple[int, ...], cells: int) -> None:
        device, batch = self.kernels.device, shape[0]
        self._n, self._x, self.best, self._gradient, self._shared = (
            device.empty(shape) for _ in range(5)
        )
        self._moments = tuple(device.empty(shape) for _ in range(4))
        plane = (batch, 1, *shape[2:])
        self._free = device.empty(plane, np.uint8)
        self._counted = device.to_device(np.ones(plane, np.uint8))
        self._alpha1, self._alpha2, self._beta, self._rate = (
            device.empty((batch,)) for _ in range(4)
        )
        self._scores = device.empty((batch, cells))
        self._value, self._squared, self._largest, self._change = (
            device.empty((batch,), np.float64) for _ in range(4)
        )
        self._steps = device.empty((self.settings.ends.most, 13))
        self._box: tuple[float, float, float] | None = None
        prior = self.settings.prior
        self._prior = None
        if prior is not None:
            self._prior = device.to_device(prior.means), device.to_device(prior.precisions)

    def load(self, batch: Batch, tables: ViewTables) -> None:
        """Go on with another batch of the size; candidates are those of its start n0."""
        self._view.load(tables)
        self.kernels.device.upload(self._x, np.ascontiguousarray(batch.x))
        self._pass(batch.start)
        self._scorer.begin(self._features)

    def scored(self, n: Float) -> tuple[Double, Float]:
        """See `Descent`."""
        self._pass(n)
        self._score(None)
        value, cells = map(self.kernels.device.to_host, (self._value, self._scores))
        return value, cells.reshape(len(n), *self._grid)

    def start(self, n: Float, pixels: Pixels, weights: Weights) -> None:
        """Begin at n (N, C, H, W), with weights of one stage."""
        device = self.kernels.device
        self._schedule(pixels)
        for array, host in (
            (self._n, n),
            (self.best, n),
            (self._free, pixels.free),
            (self._rate, pixels.rate),
            (self._alpha1, weights.prior),
            (self._alpha2, weights.variation),
            (self._beta, weights.sparsity[0]),
        ):
            device.upload(array, np.ascontiguousarray(host))
        for array in self._moments:
            device.driver.fill(array.pointer, 0, array.size)
        self.progress.reset()

    def enqueue(self) -> None:
        """See `Step`."""
        kernels, settings, progress = self.kernels, self.settings, self.progress
        self._view.project(self._n, self.pair.forward.inputs[IMAGE])
        self.pair.forward.enqueue(kernels.stream)
        self._score(self._cotangent)
        self.pair.backward.enqueue(kernels.stream)
        self._view.pull_back(self.pair.gradients[IMAGE], self._gradient)
        self._regularise()
        kernels.norms(self._gradient, squared=self._squared, largest=self._largest)
        change = self._change if settings.ends.least > 0 else None
        if change is not None:
            progress.recent_change(self._value, change)
        progress.settle(self._value, change=change, guard=self._squared)
        progress.keep(self._n, self.best)
        first, slope, second, previous = self._moments
        kernels.adan_scheduled(
            self._n, self._x, self._direction(), first, slope, second, previous, self._free,
            rate=self._rate, steps=self._steps, at=progress.at,
        )  # fmt: skip

    def outcome(self, seconds: float) -> Outcome:
        """How the search ended, on the host."""
        return self.progress.outcome((self.best,), seconds)

    def _schedule(self, pixels: Pixels) -> None:
        """Adan's constants of all steps, where they are others than those there."""
        box = pixels.clip, pixels.lower, pixels.upper
        if box == self._box:
            return
        clip, lower, upper = self._box = box
        most, floor = self.settings.ends.most, self.settings.floor
        table = adan_steps(most, clip=clip, lower=lower, upper=upper, floor=floor)
        self.kernels.device.upload(self._steps, table)

    def _pass(self, n: Float) -> None:
        """Put the features of windows n on the stream."""
        self.kernels.device.upload(self._n, np.ascontiguousarray(n))
        self._view.project(self._n, self.pair.forward.inputs[IMAGE])
        self.pair.forward.enqueue(self.kernels.stream)

    def _score(self, cotangent: DeviceArray | None) -> None:
        """l_n and the scores of all cells, of the features that are there."""
        device = self.kernels.device
        self._scorer.enqueue(self._features, scores=self._scores, cotangent=cotangent)
        batch, length = self._scores.shape
        grid = device.rows(batch, length, 1)
        partial = device.scratch("partial sum", (batch, grid[0]), np.float64)
        device.launch("sum_rows", grid, x=self._scores, partial=partial, batch=batch, length=length)
        device.launch(
            "finish_sum", (batch, 1), partial=partial, scale=None, out=self._value, blocks=grid[0]
        )

    def _regularise(self) -> None:
        """Add the other terms to value and gradient."""
        kernels, n = self.kernels, self._n
        into = {"gradient": self._gradient, "value": self._value}
        kernels.total_variation(n, self._alpha2, **into)
        if self._prior is not None:
            kernels.mixture_prior(n, *self._prior, self._alpha1, self._counted, **into)
        epsilon = self.settings.epsilon
        kernels.log_penalty(self._x, n, self._beta, self._counted, epsilon=epsilon, **into)

    def _direction(self) -> DeviceArray:
        """Eq. (13)."""
        sharing = self.settings.sharing
        if sharing is None:
            return self._gradient
        self.kernels.share_gradient_direct(
            self._gradient, self._x, radius=sharing.radius, sigma_space=sharing.sigma_space,
            sigma_colour=sharing.sigma_colour, shared=self._shared,
        )  # fmt: skip
        return self._shared
