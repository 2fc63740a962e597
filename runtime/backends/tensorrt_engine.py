"""One deserialised TensorRT engine, and its execution contexts over device buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.backends.device_memory import Array, Block, DeviceMemory
from unblemish.runtime.backends.protocol import TensorSpec
from unblemish.runtime.backends.tensorrt_log import Log, Recorder, lengths, trt

Shape = tuple[int, ...]
Scratch = Callable[[int], int]
"""Bytes -> address of device memory of that size, which outlives the context."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype("V2"),  # NumPy has no bfloat16; such a tensor never leaves the device
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}


class Engine:
    """An engine with its weights, once for all of its contexts. Not thread-safe.

    Args:
        plan: content that the manifest vouches for.
        foreign: the engine was built version-compatible, and brings its own runtime along.
    Raises: BackendError where TensorRT refuses it.
    """

    def __init__(self, plan: bytes, name: str, *, foreign: bool) -> None:
        self.name = name
        # Kept in this order: each is used by those behind it, and must not go before them.
        self._log = Log()
        self._recorder = Recorder(self._log)
        self._runtime = trt.Runtime(self._log)
        self._runtime.error_recorder = self._recorder
        if foreign:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._loaded(plan)
        self.inputs, self.outputs = self._specs()

    def _loaded(self, plan: bytes) -> trt.ICudaEngine:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"TensorRT cannot load engine '{self.name}': {self._log.take()}. "
                "Build it again on this device: unblemish build-engines BUNDLE --again."
            )
        return engine

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        found: dict[trt.TensorIOMode, list[TensorSpec]] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BackendError(
                    f"engine '{self.name}' wants tensor '{name}' on the host: it is a shape that "
                    "is computed at run time. Build the engine for one size."
                )
            found.setdefault(self._engine.get_tensor_mode(name), []).append(self._spec(name))
        modes = trt.TensorIOMode
        return tuple(found.get(modes.INPUT, ())), tuple(found.get(modes.OUTPUT, ()))

    def _spec(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise BackendError(f"tensor '{name}' of engine '{self.name}' is {kind}, not supported.")
        shape = lengths(self._engine.get_tensor_shape(name))
        symbolic = (("batch" if axis == 0 else f"{name}_{axis}") if d < 0 else d
                    for axis, d in enumerate(shape))  # fmt: skip
        return TensorSpec(name, tuple(symbolic), _DTYPES[kind])

    def misfit(self, shapes: Mapping[str, Shape]) -> str | None:
        """Why the engine cannot run inputs of these shapes, or None; inputs not named fit."""
        for spec in self.inputs:
            shape = shapes.get(spec.name)
            if shape is None:
                continue
            least, most = self._range(spec)
            if len(shape) != len(least) or not all(
                low <= d <= high for low, d, high in zip(least, shape, most, strict=True)
            ):
                return f"input '{spec.name}' of shape {shape} is outside of {least} to {most}"
        return None

    def _range(self, spec: TensorSpec) -> tuple[Shape, Shape]:
        fixed = tuple(d for d in spec.shape if isinstance(d, int))
        if len(fixed) == len(spec.shape):
            return fixed, fixed
        least, _, most = map(lengths, self._engine.get_tensor_profile_shape(spec.name, 0))
        return least, most

    def context(self) -> trt.IExecutionContext:
        """A context of its own; the engine must outlive it.

        Raises: BackendError where there is no memory left.
        """
        context = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise BackendError(
                f"TensorRT has no memory to run engine '{self.name}': {self._log.take()}. Build it "
                "for smaller batches: unblemish build-engines --batch."
            )
        return context

    def set_shapes(
        self, context: trt.IExecutionContext, shapes: Mapping[str, Shape], scratch: Scratch
    ) -> dict[str, Shape]:
        """State the shape of every input; the shapes of all tensors come back.

        Args:
            scratch: gives the memory for what is between the layers, as much as these shapes need.
        Raises: ShapeError where the engine was not built for them.
        """
        found: dict[str, Shape] = {}
        for spec in self.inputs:
            if spec.name not in shapes:
                have = ", ".join(shapes) or "nothing"
                raise ShapeError(f"the engine needs input '{spec.name}'; it was given {have}.")
            if not context.set_input_shape(spec.name, shapes[spec.name]):
                raise ShapeError(
                    f"engine '{self.name}' does not take input '{spec.name}' of shape "
                    f"{shapes[spec.name]}: {self._log.take()}."
                )
            found[spec.name] = shapes[spec.name]
        for spec in self.outputs:
            shape = lengths(context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                raise BackendError(
                    f"the shape of output '{spec.name}' of engine '{self.name}' is known only "
                    f"after it ran ({shape}), which the runner does not support."
                )
            found[spec.name] = shape
        # 0 says, too, that it failed; what the largest shapes need does for all.
        size = context.update_device_memory_size_for_shapes() or self._engine.device_memory_size_v2
        if size:
            context.set_device_memory(scratch(size), size)
        return found

    def set_address(self, context: trt.IExecutionContext, name: str, address: int) -> None:
        """Say where a tensor lies. Raises: BackendError where TensorRT refuses."""
        if not context.set_tensor_address(name, address):
            raise BackendError(
                f"engine '{self.name}' refuses the memory of '{name}': {self._log.take()}."
            )

    def enqueue(self, context: trt.IExecutionContext, stream: int) -> None:
        """Put a run on a stream. Raises: BackendError where TensorRT refuses."""
        if not context.execute_async_v3(stream):
            raise BackendError(f"engine '{self.name}' failed to start: {self._log.take()}.")


class SharedMemory:
    """A device, and one piece of its memory for what is between the layers of engines in turn.

    All of them run in order on its stream. What was outgrown stays: a context may have it.
    """

    def __init__(self, device: DeviceMemory) -> None:
        self.device = device
        self._blocks: list[Block] = []

    def scratch(self, size: int) -> int:
        """See `Scratch`."""
        if not self._blocks or self._blocks[-1].size < size:
            self._blocks.append(self.device.allocate(size))
        return self._blocks[-1].address


class Execution:
    """One context of an engine over device buffers that grow with the largest shape seen.

    A tensor bound to another's buffer (`share`) is never copied.
    """

    def __init__(self, engine: Engine, shared: SharedMemory) -> None:
        self.engine, self._shared, self._memory = engine, shared, shared.device
        self._context = engine.context()
        self._blocks: dict[str, Block] = {}
        self._shapes: dict[str, Shape] = {}

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """State the shape of every input. Raises: as `Engine.set_shapes`."""
        inputs = self.engine.inputs
        if not self._shapes or any(self._shapes[s.name] != shapes.get(s.name) for s in inputs):
            self._shapes = {}  # none, should one be refused
            self._shapes = self.engine.set_shapes(self._context, shapes, self._shared.scratch)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor as of the last `set_shapes`."""
        return self._shapes[name]

    def block(self, name: str) -> Block:
        """Device buffer of a tensor, with room for its shape."""
        specs = (*self.engine.inputs, *self.engine.outputs)
        spec = next(s for s in specs if s.name == name)
        needed = max(math.prod(self._shapes[name]) * spec.dtype.itemsize, 1)
        if name not in self._blocks or self._blocks[name].size < needed:
            self._blocks[name] = self._memory.allocate(needed)
        return self._blocks[name]

    def share(self, name: str, block: Block) -> None:
        """Let an input be another engine's tensor, where that one lies."""
        self._blocks[name] = block

    def run(self) -> None:
        """Begin to run on the stream; the shapes are set, and the inputs' buffers filled.

        Raises: BackendError where TensorRT refuses.
        """
        for spec in (*self.engine.inputs, *self.engine.outputs):
            self.engine.set_address(self._context, spec.name, self.block(spec.name).address)
        self.engine.enqueue(self._context, self._memory.stream)


class Staging:
    """Page-locked arrays between the caller and the device, one for each tensor and shape."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._arrays: dict[str, Array] = {}

    def upload(self, execution: Execution, spec: TensorSpec, array: Array) -> None:
        """Copy a feed into an input's buffer."""
        staged = self._array(f"to {spec.name}", array.shape, spec.dtype)
        np.copyto(staged, array)
        self._memory.upload(execution.block(spec.name), staged)

    def download(self, execution: Execution, spec: TensorSpec) -> Array:
        """Begin to copy an output; the array is filled once the stream was waited for."""
        staged = self._array(f"from {spec.name}", execution.shape(spec.name), spec.dtype)
        self._memory.download(staged, execution.block(spec.name))
        return staged

    def _array(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        held = self._arrays.get(name)
        if held is None or held.shape != shape:
            self._arrays[name] = held = self._memory.host(shape, dtype)
        return held
