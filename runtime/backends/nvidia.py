"""What the NVIDIA driver says of the machine, asked without any package of NVIDIA's."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Gpu:
    """The first GPU: its name, compute capability, and the newest CUDA that the driver runs."""

    name: str
    capability: tuple[int, int]
    cuda: tuple[int, int]

    def __str__(self) -> str:
        capability, cuda = (".".join(map(str, pair)) for pair in (self.capability, self.cuda))
        return f"{self.name}, compute capability {capability}, driver for CUDA {cuda}"


@functools.cache
def find_gpu() -> Gpu | str:
    """The first GPU, or why there is none; asked once per process."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"no NVIDIA driver is installed ({_LIBRARY} is not found)"
    return ask(driver)


def ask(driver: Any) -> Gpu | str:
    """As `find_gpu`, of a driver that is loaded."""
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    code = driver.cuInit(0)
    if code == _NO_DEVICE or (code == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
                              and count.value == 0):  # fmt: skip
        return "the NVIDIA driver sees no GPU"
    if code:
        return f"the NVIDIA driver does not start (cuInit gives {code})"
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    major, minor = (_attribute(driver, which, device) for which in (_MAJOR, _MINOR))
    cuda = version.value // 1000, version.value % 1000 // 10
    return Gpu(name.value.decode(errors="replace"), (major, minor), cuda)


def _attribute(driver: Any, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
