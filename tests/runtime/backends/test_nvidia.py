"""What the driver says, from a double of its library."""

from __future__ import annotations

import ctypes
from typing import Any

from unblemish.runtime.backends.nvidia import Gpu, ask, find_gpu


class Driver:
    """The calls of the driver that are used; arguments are the pointers of ctypes."""

    def __init__(self, init: int = 0, devices: int = 1) -> None:
        self._init, self._devices = init, devices

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._devices
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[which]
        return 0


def test_gpu_is_read_off_the_driver() -> None:
    gpu = ask(Driver())
    assert gpu == Gpu("Orin", (8, 7), (12, 8))
    assert str(gpu) == "Orin, compute capability 8.7, driver for CUDA 12.8"


def test_driver_without_a_gpu() -> None:
    for driver in (Driver(init=100), Driver(devices=0)):
        assert ask(driver) == "the NVIDIA driver sees no GPU"


def test_driver_that_does_not_start() -> None:
    assert "cuInit gives 803" in str(ask(Driver(init=803)))


def test_find_gpu_says_what_it_found_or_why_not() -> None:
    found = find_gpu()
    assert isinstance(found, Gpu) or "driver" in found
