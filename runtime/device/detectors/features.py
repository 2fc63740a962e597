"""A detector's extractor on the device: passes by the size of the images, made when asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from unblemish.errors import BackendError
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.detectors.protocol import FEATURES, IMAGE
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.passes import StreamPass
from unblemish.runtime.device.memory import shaped

_LOG = logging.getLogger("unblemish")
_PASSES = 64  # of different sizes at once
_MEMORY = 1 << 30  # bytes of the images and features of all of them
_PIXELS = 32 * 224 * 224  # of one launch: beyond, more images do not fill a chip better

Size = tuple[int, int]


@dataclass(eq=False)
class FeaturePass:
    """The extractor for so many images of one size.

    Args:
        run: how often it was put on the stream: what is in `features` is of the last time.
    """

    engine: StreamPass
    stream: int
    run: int = 0

    @property
    def batch(self) -> int:
        """Images at once."""
        return self.images.shape[0]

    @property
    def cells(self) -> DeviceArray:
        """`features` as (B, L, c)."""
        batch, rows, columns, channels = self.features.shape
        return shaped(self.features, (batch, rows * columns, channels))

    @property
    def images(self) -> DeviceArray:
        """Input, (B, C, h, w)."""
        return self.engine.inputs[IMAGE]

    @property
    def features(self) -> DeviceArray:
        """Output, (B, h / stride, w / stride, c)."""
        return self.engine.outputs[FEATURES]

    @property
    def nbytes(self) -> int:
        """Memory of images and features."""
        return self.images.nbytes + self.features.nbytes

    def enqueue(self) -> None:
        """Put the pass on the stream."""
        self.engine.enqueue(self.stream)
        self.run += 1


class FeaturePasses:
    """The passes of one graph, of which the last few sizes are kept.

    Batches are powers of two, so that few sizes occur: what is left over computes old images again,
    which nobody reads.

    Args:
        path: of the graph. channels: of an image.
    """

    def __init__(self, engines: DeviceEngines, path: str, channels: int) -> None:
        self._engines, self._path, self._channels = engines, path, channels
        self._held: dict[tuple[int, Size], FeaturePass] = {}
        self._refused: dict[tuple[int, Size], str] = {}

    def get(self, count: int, size: Size) -> FeaturePass | None:
        """A pass for up to `count` images, or for as many at once as the engine was made for.

        Returns: None where it was made for no image of that size, see `refuse`.
        """
        most = max(_PIXELS // (size[0] * size[1]), 1)
        batch = min(1 << (count - 1).bit_length(), 1 << (most.bit_length() - 1))
        found = self._of(batch, size)
        while found is None and batch > 1:
            batch //= 2
            found = self._of(batch, size)
        return found

    def refuse(self, size: Size, reason: str) -> None:
        """From now on images of that size are for the host, which one line of the log says."""
        self._refused[1, size] = reason
        self._held = {key: held for key, held in self._held.items() if key[1] != size}
        height, width = size
        _LOG.warning("images of %d x %d are scored on the host: %s", height, width, reason)

    def _of(self, batch: int, size: Size) -> FeaturePass | None:
        key = batch, size
        if key in self._refused or (1, size) in self._refused:
            return None
        if key not in self._held:
            kernels = self._engines.kernels
            try:
                images = kernels.device.zeros((batch, self._channels, *size))
                engine = self._engines.single(self._path, {IMAGE: images})
            except BackendError as error:
                kernels.synchronise()  # `images` goes; what clears it must not wait
                if batch == 1:
                    self.refuse(size, str(error))
                self._refused[key] = str(error)
                return None
            self._keep(key, FeaturePass(engine, kernels.stream))
        return self._held[key]

    def _keep(self, key: tuple[int, Size], made: FeaturePass) -> None:
        """Of too many sizes those made first are forgotten."""
        used = made.nbytes + sum(held.nbytes for held in self._held.values())
        while self._held and (len(self._held) >= _PASSES or used > _MEMORY):
            used -= self._held.pop(next(iter(self._held))).nbytes
        self._held[key] = made
