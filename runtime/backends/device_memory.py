"""What the runner of an engine asks of a device: memory, copies and one stream."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Block(Protocol):
    """Device memory; given back when the object goes."""

    @property
    def address(self) -> int:
        """Where it begins, aligned to 256 bytes."""

    @property
    def size(self) -> int:
        """Bytes."""


class DeviceMemory(Protocol):
    """One device and one stream, on which everything happens in order."""

    @property
    def stream(self) -> int:
        """Handle of the stream, never the default one: that waits for all others."""

    @property
    def capability(self) -> str:
        """Compute capability of the chip, such as 8.7."""

    def allocate(self, size: int) -> Block:
        """Device memory of `size` bytes. Raises: BackendError where there is no more."""

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A page-locked array, which copies can read and write while the CPU goes on."""

    def upload(self, block: Block, array: Array) -> None:
        """Begin to copy a page-locked, contiguous array to the device."""

    def download(self, array: Array, block: Block) -> None:
        """Begin to copy from the device into a page-locked, contiguous array."""

    def synchronise(self) -> None:
        """Wait for all that was begun on the stream. Raises: BackendError where it failed."""
