"""TensorRT over device arrays of fixed address, on our stream, in captured graphs too.

Rules of TensorRT that decide the shape of this (its samples and its maintainers' word): a captured
graph holds shapes, addresses and memory of one execution context, so that each pass has a context
of its own that is never changed again; a context runs once after its shapes are set, before it is
captured; what runs in order on one stream may share the memory between layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unblemish.errors import BackendError, ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends.protocol import Backend, TensorSpec
from unblemish.runtime.backends.tensorrt import Variants
from unblemish.runtime.backends.tensorrt_engine import Engine
from unblemish.runtime.device.engines import DeviceBackend, DeviceEngines, DeviceGraph

_LOG = logging.getLogger("unblemish")
_ALIGNED = 256  # bytes, of every address that TensorRT is given


class TensorRtEngines(DeviceEngines):
    """The engines of a bundle on the kernels' stream; what they were not built for runs elsewhere.

    Args:
        variants: paths of graphs -> their engines, None where one of them has none.
        fallback: opens the backend for the rest.
    """

    def __init__(
        self,
        kernels: CudaKernels,
        variants: Callable[[Sequence[str]], Variants | None],
        fallback: Callable[[], Backend],
    ) -> None:
        super().__init__(kernels, self._first)
        self._open, self._fallback = variants, fallback
        self._variants: dict[tuple[str, ...], Variants | None] = {}
        self._other: DeviceEngines | None = None

    def fitting(
        self, paths: tuple[str, ...], inputs: Mapping[str, DeviceArray]
    ) -> Sequence[DeviceGraph]:
        """See `DeviceEngines.fitting`; all of these graphs by TensorRT, or none.

        Raises: BackendError where there are no engines, and the other backend is the host's.
        """
        variants = self._of(paths)
        shapes = {name: array.shape for name, array in inputs.items()}
        engines = None if variants is None else variants.fitting(shapes)
        if engines is None:
            return self._others(paths).fitting(paths, inputs)
        return [TensorRtGraph(self.kernels.device, engine) for engine in engines]

    def _first(self, path: str) -> DeviceGraph:
        variants = self._of((path,))
        if variants is None:
            return self._others((path,)).graph(path)
        return TensorRtGraph(self.kernels.device, variants.first()[0])

    def _of(self, paths: tuple[str, ...]) -> Variants | None:
        if paths not in self._variants:
            self._variants[paths] = self._open(paths)
        return self._variants[paths]

    def _others(self, paths: tuple[str, ...]) -> DeviceEngines:
        if self._other is None:
            backend = self._fallback()
            if not isinstance(backend, DeviceBackend):
                raise BackendError(
                    f"no TensorRT engine was built for {' and '.join(paths)} as asked, and "
                    f"{backend.name} does not run on the GPU. See unblemish build-engines."
                )
            self._other = backend.on_device(self.kernels)
        return self._other


class TensorRtGraph:
    """An engine to be bound to arrays of the kernels' device. Implements `DeviceGraph`."""

    def __init__(self, device: Device, engine: Engine) -> None:
        self._device, self._engine = device, engine
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def over(self, inputs: Mapping[str, DeviceArray]) -> TensorRtPass:
        """See `DeviceGraph`."""
        return TensorRtPass(self._device, self._engine, inputs)


class TensorRtPass:
    """An engine with every tensor bound. Implements `StreamPass`.

    It runs once when it is made, and is then captured once on trial: an engine may hold operations
    that cannot be, which shows only so.

    Args:
        inputs: arrays of all inputs; outputs are allocated.
    Raises: ShapeError where an input is missing or of another dtype; BackendError where the engine
        was not built for these shapes, or fails.
    """

    def __init__(self, device: Device, engine: Engine, inputs: Mapping[str, DeviceArray]) -> None:
        self._device, self._engine = device, engine
        self.inputs: Mapping[str, DeviceArray] = {
            spec.name: _checked(spec, inputs) for spec in engine.inputs
        }
        misfit = engine.misfit({name: array.shape for name, array in self.inputs.items()})
        if misfit is not None:
            raise BackendError(f"engine '{engine.name}' was not built for this: {misfit}.")
        self._context = engine.context()
        self.outputs: Mapping[str, DeviceArray] = self._bind()
        self.enqueue(device.driver.stream)
        device.driver.synchronise()
        self.capturable = self._can_be_captured()

    def enqueue(self, stream: int) -> None:
        """See `StreamPass`. Raises: BackendError where TensorRT refuses."""
        self._engine.enqueue(self._context, stream)

    def _bind(self) -> dict[str, DeviceArray]:
        engine = self._engine
        shapes = {name: array.shape for name, array in self.inputs.items()}
        shapes = engine.set_shapes(self._context, shapes, self._scratch)
        outputs = {s.name: self._device.empty(shapes[s.name], s.dtype) for s in engine.outputs}
        for name, array in {**self.inputs, **outputs}.items():
            engine.set_address(self._context, name, array.pointer)
        return outputs

    def _scratch(self, size: int) -> int:
        """All passes run in order on one stream, so that one piece of memory does for all."""
        return self._device.scratch("tensorrt", (size,), np.uint8).pointer

    def _can_be_captured(self) -> bool:
        driver = self._device.driver
        driver.begin_capture()
        try:
            self.enqueue(driver.stream)
            driver.end_capture()
        except BackendError as error:
            driver.abandon_capture()
            _LOG.warning("an engine is put on the stream anew in every step: %s", error)
            return False
        return True


def _checked(spec: TensorSpec, inputs: Mapping[str, DeviceArray]) -> DeviceArray:
    array = inputs.get(spec.name)
    if array is None:
        raise ShapeError(f"the graph needs input '{spec.name}'.")
    if array.dtype != spec.dtype:
        raise ShapeError(f"input '{spec.name}' must be {spec.dtype}; got {array.dtype}.")
    if array.pointer % _ALIGNED or not array.flags.c_contiguous:
        raise ShapeError(
            f"input '{spec.name}' must be contiguous and begin at a multiple of {_ALIGNED} bytes. "
            "Give an array of its own, not a part of another."
        )
    return array
