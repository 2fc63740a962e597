"""`Driver` by pycuda, on the primary context, which torch, TensorRT and ONNX Runtime share."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import BackendError, MissingDependencyError
from unblemish.kernels.cuda.capture import CapturedGraph, StreamApi
from unblemish.kernels.cuda.driver import THREADS, Memory
from unblemish.kernels.cuda.modules import load_function
from unblemish.kernels.cuda.signatures import Signature

try:
    import pycuda.driver as cuda
except ModuleNotFoundError as error:
    raise MissingDependencyError("pycuda", "cuda", "CudaKernels") from error
except ImportError as error:
    raise BackendError(
        f"pycuda cannot load the CUDA driver: {error}. Install NVIDIA's driver for the GPU, or use "
        "the CPU kernels."
    ) from error

T = TypeVar("T")


class DeviceMemory:
    """Memory of `cuMemAlloc`; given back when the object dies."""

    def __init__(self, held: Any) -> None:
        self._held = held
        self.pointer = int(held)


class StreamEvent:
    """See `Event`."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def reached(self) -> bool:
        """See `Event`."""
        return bool(_checked("cuEventQuery", self._event.query))

    def wait(self) -> None:
        """See `Event`."""
        _checked("cuEventSynchronize", self._event.synchronize)

    def since(self, before: Any) -> float:
        """See `Event`."""
        return float(_checked("cuEventElapsedTime", self._event.time_since, before._event))


class PycudaDriver:
    """One stream on the primary context of a GPU, made current in the thread that opens it.

    Args:
        device: number of the GPU.
    Raises: BackendError where there is none of that number.
    """

    name = "pycuda"

    def __init__(self, device: int = 0) -> None:
        _checked("cuInit", cuda.init)
        count = int(cuda.Device.count())
        if not 0 <= device < count:
            raise BackendError(
                f"GPU {device} was asked for, and there are {count}. Look at nvidia-smi."
            )
        self._context = _primary_context(device)
        gpu = cuda.Device(device)
        self.device = (2, device)
        self.multiprocessors = int(gpu.multiprocessor_count)
        self.cache = int(gpu.get_attribute(cuda.device_attribute.L2_CACHE_SIZE))
        major, minor = gpu.compute_capability()
        self.capability = (int(major), int(minor))
        self.capturing = False
        # Of its own, not of the legacy default stream: that one would wait for all others.
        self._stream = cuda.Stream(1)
        self.stream = int(self._stream.handle)
        self._api = StreamApi(self.stream)
        self._functions: dict[str, Any] = {}

    def allocate(self, nbytes: int) -> Memory:
        """See `Driver`."""
        return DeviceMemory(_checked(f"cuMemAlloc of {nbytes} bytes", cuda.mem_alloc, nbytes))

    def pinned(self, nbytes: int) -> NDArray[Any]:
        """See `Driver`."""
        array = _checked("cuMemHostAlloc", cuda.pagelocked_zeros, nbytes, np.uint8)
        return np.asarray(array)

    def launch(self, kernel: Signature, grid: tuple[int, int], values: list[Any]) -> None:
        """See `Driver`."""
        function = self._functions.get(kernel.name)
        if function is None:
            if self.capturing:
                raise BackendError(
                    f"CUDA kernel {kernel.name} was met first while a graph is captured, and "
                    "cannot be loaded then. Run the step once before it is captured."
                )
            function = load_function(kernel, self.capability)
            function.prepare(kernel.format)
            self._functions[kernel.name] = function
        call = function.prepared_async_call
        _checked(f"kernel {kernel.name}", call, grid, (THREADS, 1, 1), self._stream, *values)

    def upload(self, pointer: int, host: NDArray[Any]) -> None:
        """See `Driver`."""
        _checked("cuMemcpyHtoDAsync", cuda.memcpy_htod_async, pointer, host, self._stream)

    def download(self, host: NDArray[Any], pointer: int) -> None:
        """See `Driver`."""
        _checked("cuMemcpyDtoHAsync", cuda.memcpy_dtoh_async, host, pointer, self._stream)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """See `Driver`."""
        _checked("cuMemcpyDtoDAsync", cuda.memcpy_dtod_async, to, source, nbytes, self._stream)

    def fill(self, pointer: int, word: int, count: int) -> None:
        """See `Driver`."""
        _checked("cuMemsetD32Async", cuda.memset_d32_async, pointer, word, count, self._stream)

    def follow(self, stream: int) -> None:
        """See `Driver`."""
        self._order(stream, self.stream)

    def lead(self, stream: int) -> None:
        """See `Driver`."""
        self._order(self.stream, stream)

    def _order(self, before: int, after: int) -> None:
        if self.capturing:
            raise BackendError(
                "an array of another stream was met while a CUDA graph is captured, which would "
                "draw that stream into it. See it as a DeviceArray before (`device.view`)."
            )
        self._api.order(before, after)

    def record(self, *, timing: bool = False) -> StreamEvent:
        """See `Driver`."""
        flags = cuda.event_flags
        event = cuda.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)
        _checked("cuEventRecord", event.record, self._stream)
        return StreamEvent(event)

    def synchronise(self) -> None:
        """See `Driver`."""
        if self.capturing:
            raise BackendError(
                "the stream was waited for while a CUDA graph is captured, which would break it. "
                "Results on the host can be had after the capture alone."
            )
        _checked("cuStreamSynchronize", self._stream.synchronize)

    def begin_capture(self) -> None:
        """See `Driver`."""
        self._api.begin_capture()
        self.capturing = True

    def end_capture(self) -> CapturedGraph:
        """See `Driver`."""
        self.capturing = False
        return self._api.end_capture()

    def abandon_capture(self) -> None:
        """See `Driver`."""
        if self.capturing:
            self.capturing = False
            self._api.abandon_capture()


@functools.cache
def _primary_context(device: int) -> Any:
    """Retain the primary context and make it current; it is left at the end of the process."""
    context = _checked("cuDevicePrimaryCtxRetain", cuda.Device(device).retain_primary_context)
    context.push()
    atexit.register(context.pop)
    return context


def _checked(what: str, call: Callable[..., T], *arguments: Any) -> T:
    try:
        return call(*arguments)
    except cuda.Error as error:
        raise BackendError(
            f"CUDA failed at {what}: {error}. An earlier launch may be the cause: run the process "
            "under compute-sanitizer to find it."
        ) from error
