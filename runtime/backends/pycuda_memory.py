"""Device memory by pycuda, on the device's primary context, which torch and ONNX Runtime share."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np

from unblemish.errors import BackendError, MissingDependencyError
from unblemish.runtime.backends.device_memory import Array, Block

try:
    import pycuda.driver as cuda
except ImportError as error:
    raise MissingDependencyError("pycuda", "cuda", "The TensorRT engine") from error


class PycudaBlock:
    """One allocation."""

    def __init__(self, size: int) -> None:
        self._memory = cuda.mem_alloc(size)
        self.address, self.size = int(self._memory), size


class PycudaMemory:
    """See `DeviceMemory`.

    The primary context is made current on the thread that makes the object, where engines are
    loaded and run; it is released when the process ends.

    Args:
        device: ordinal of the GPU.
    Raises: BackendError where there is no GPU.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            cuda.init()
            chip = cuda.Device(device)
            self._context = chip.retain_primary_context()
            self._context.push()
        except cuda.Error as cause:
            raise BackendError(
                f"the GPU cannot be used: {cause}. Look at nvidia-smi, or use another backend."
            ) from cause
        atexit.register(self._context.pop)
        self._stream = cuda.Stream()
        self.stream = int(self._stream.handle)
        major, minor = chip.compute_capability()
        self.capability = f"{major}.{minor}"

    def allocate(self, size: int) -> Block:
        """See `DeviceMemory.allocate`."""
        try:
            return PycudaBlock(size)
        except cuda.Error as cause:
            raise BackendError(
                f"the GPU has no {size} bytes left: {cause}. Use smaller batches, or free memory."
            ) from cause

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """See `DeviceMemory.host`."""
        made: Array = cuda.pagelocked_empty(shape, dtype)
        return made

    def upload(self, block: Block, array: Array) -> None:
        """See `DeviceMemory.upload`."""
        cuda.memcpy_htod_async(block.address, array, self._stream)

    def download(self, array: Array, block: Block) -> None:
        """See `DeviceMemory.download`."""
        cuda.memcpy_dtoh_async(array, block.address, self._stream)

    def synchronise(self) -> None:
        """See `DeviceMemory.synchronise`."""
        try:
            self._stream.synchronize()
        except cuda.Error as cause:
            raise BackendError(
                f"the GPU failed while running an engine: {cause}. Start the process again; if it "
                "stays, run the bundle with another backend."
            ) from cause
