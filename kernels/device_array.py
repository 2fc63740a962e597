"""Arrays in the memory of a GPU: shape, dtype and address, without copies and without CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from unblemish.errors import ShapeError
from unblemish.kernels import dlpack

NO_ORDER = -1  # DLPack: the consumer asks for no synchronisation


class Flags(NamedTuple):
    """What `numpy.ndarray.flags` says of them."""

    c_contiguous: bool
    writeable: bool


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """Memory on a device; it has the attributes of a NumPy array that describe one.

    Args:
        pointer: address on the device.
        strides: bytes; None where C-contiguous.
        owner: what must live as long as the memory is used.
        device: as DLPack has it: (2, n) is the n-th GPU.
        stream: handle of the stream on which it was written last; None where nobody has to wait.
        follow: follow(stream) makes another stream wait for that one.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] = ()
    readonly: bool = False
    owner: object = field(default=None, repr=False)
    device: tuple[int, int] = (2, 0)
    stream: int | None = None
    follow: Callable[[int], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.shape):
            object.__setattr__(self, "strides", contiguous_strides(self.shape, self.dtype.itemsize))

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def flags(self) -> Flags:
        """Order of the memory, and whether it may be written to."""
        expected = contiguous_strides(self.shape, self.dtype.itemsize)
        ordered = all(
            n == 1 or found == wanted
            for n, found, wanted in zip(self.shape, self.strides, expected, strict=True)
        )
        return Flags(ordered or self.size == 0, not self.readonly)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, with the stream that wrote it last."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, self.readonly),
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Hand the memory over; the consumer's stream waits for ours first.

        Raises: BufferError for memory that must not be written, which this version of DLPack cannot
            say, or where a copy or another device is asked for.
        """
        if copy or dl_device not in (None, self.device):
            raise BufferError("an array on the device is handed over where it is, not copied.")
        if self.readonly:
            raise BufferError("a read-only array cannot be handed over by DLPack.")
        if self.follow is not None and stream != NO_ORDER:
            self.follow(1 if stream is None else stream)  # None: the legacy default stream
        return dlpack.produce(self.pointer, self.shape, self.dtype, self.strides, self.device, self)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, pointer={self.pointer:#x})"


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array."""
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def overlap(a: DeviceArray, b: DeviceArray) -> bool:
    """Whether the memory that two arrays span has a byte in common."""
    (first, end), (other, other_end) = _span(a), _span(b)
    return a.device == b.device and max(first, other) < min(end, other_end)


def _span(array: DeviceArray) -> tuple[int, int]:
    if array.size == 0:
        return array.pointer, array.pointer
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    low = sum(r for r in reach if r < 0)
    high = sum(r for r in reach if r > 0)
    return array.pointer + low, array.pointer + high + array.dtype.itemsize


def from_foreign(value: Any, stream: int, wait: Callable[[int], None]) -> DeviceArray | None:
    """See another library's device array as it is; None where `value` is none.

    DLPack comes first: its producer makes our stream wait for its own. Of the CUDA array interface
    we wait for the stream it names; where it names none, the order is the caller's.

    Args:
        stream: handle of our stream. wait: makes it wait for another.
    Raises: ShapeError where its producer will not hand it over, or NumPy has not its elements.
    """
    if isinstance(value, DeviceArray):
        if value.stream not in (None, stream):
            wait(int(value.stream or 0))
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        if value.__dlpack_device__()[0] in dlpack.GPU_KINDS:
            return _of_capsule(_exported(value, stream), value)
        return None
    described = getattr(value, "__cuda_array_interface__", None)
    return None if described is None else _of_interface(described, value, stream, wait)


def _exported(value: Any, stream: int) -> Any:
    try:
        return value.__dlpack__(stream=stream)
    except (BufferError, RuntimeError) as error:  # torch: tensors that require gradients
        raise ShapeError(
            f"{type(value).__name__} cannot be seen by DLPack: {error}. Detach it, or give a plain "
            "copy."
        ) from error


def _of_capsule(capsule: Any, owner: object) -> DeviceArray:
    seen = dlpack.describe(capsule)
    # The capsule itself is kept: while nobody takes it over, its end releases the memory.
    return DeviceArray(
        seen.pointer, seen.shape, seen.dtype, seen.strides, owner=(capsule, owner),
        device=seen.device,
    )  # fmt: skip


def _of_interface(
    described: dict[str, Any], owner: object, stream: int, wait: Callable[[int], None]
) -> DeviceArray:
    theirs = described.get("stream")
    if theirs is not None and theirs != stream:
        wait(int(theirs))
    pointer, readonly = described["data"]
    shape = tuple(int(n) for n in described["shape"])
    strides = tuple(described.get("strides") or ())
    dtype = np.dtype(described["typestr"])
    return DeviceArray(int(pointer or 0), shape, dtype, strides, bool(readonly), owner)
