"""Where arrays on the device are kept, and other shapes of the same memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray

Memory = Callable[[str, tuple[int, ...], DTypeLike], DeviceArray]
"""memory(name, shape, dtype): `Device.scratch`, whose names are shared by all, or `own_memory`."""


def own_memory(device: Device) -> Memory:
    """Memory of one's own, whatever the name."""
    return lambda name, shape, dtype: device.empty(shape, dtype)


def placed(device: Device, memory: Memory, name: str, host: NDArray[Any]) -> DeviceArray:
    """A host array copied to memory of that name."""
    array = memory(name, host.shape, host.dtype)
    device.upload(array, np.ascontiguousarray(host))
    return array


def shaped(array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    """The same contiguous memory, or the front of it, seen as another shape."""
    return replace(array, shape=shape, strides=())


def front(array: DeviceArray, count: int) -> DeviceArray:
    """The first `count` items."""
    return shaped(array, (count, *array.shape[1:]))


def item(array: DeviceArray, number: int) -> DeviceArray:
    """One item, with an axis of its own in front."""
    step = array.nbytes // array.shape[0]
    return replace(front(array, 1), pointer=array.pointer + number * step)
