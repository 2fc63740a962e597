"""The autoencoder as a method sees it: images to their reconstructions, and the way back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from unblemish.errors import BackendError
from unblemish.runtime.backends.protocol import Array, Pair, Program, TensorSpec
from unblemish.runtime.methods.engine import Stopwatch
from unblemish.runtime.solvers.protocol import Float
from unblemish.runtime.workspace import Workspace

IMAGE = "image"


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of images (B, C, h, w); valid until its next pass.

    Args:
        image: (B, C, h, w), of a VAE the mean of the decoder at the mean of the code.
        mean, log_variance: (B, n) of a VAE's code. log_scale: as `image`, of a decoder whose
            standard deviation differs from element to element. None where the model has none.
    """

    image: Float
    mean: Float | None = None
    log_variance: Float | None = None
    log_scale: Float | None = None


@dataclass(frozen=True)
class OneWay:
    """A program in the place of a pair, for what needs no gradient: nothing is kept for it."""

    program: Program

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See `Pair`."""
        return self.program.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See `Pair`."""
        return self.program.outputs

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair`."""
        return self.program.run(feeds)

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        """Raises: BackendError."""
        raise BackendError("the autoencoder was loaded without its gradient.")


@dataclass
class AutoencoderEngine:
    """A differentiable autoencoder: f through encoder and decoder, one pass for both.

    Args:
        pair: of the graph `reconstruct`.
    """

    pair: Pair | OneWay
    watch: Stopwatch = field(default_factory=Stopwatch)
    _space: Workspace = field(default_factory=Workspace, init=False, repr=False)

    def forward(self, x: Float) -> Reconstruction:
        """Reconstruct x (B, C, h, w); it must not change before `backward`."""
        began = time.perf_counter()
        outputs = self.pair.forward({IMAGE: x})
        self.watch.add("forward", began)
        return Reconstruction(
            outputs["reconstruction"],
            outputs.get("mean"),
            outputs.get("log_variance"),
            outputs.get("log_scale"),
        )

    def backward(self, **cotangents: Float) -> Float:
        """Sum of J^T c over the outputs given, (B, C, h, w); valid until the next call.

        Args:
            cotangents: of reconstruction, mean, log_variance or log_scale; 0 where not given.
        """
        began = time.perf_counter()
        rows = len(next(iter(cotangents.values())))
        every = {
            spec.name: cotangents[spec.name]
            if spec.name in cotangents
            else self._nothing(spec, rows)
            for spec in self.pair.outputs
        }
        gradient = self.pair.backward(every)[IMAGE]
        self.watch.add("backward", began)
        return np.asarray(gradient)

    def _nothing(self, spec: TensorSpec, rows: int) -> Float:
        zeros = self._space.array(spec.name, (rows, *map(int, spec.shape[1:])))
        zeros.fill(0)
        return np.asarray(zeros, np.float32)
