"""`PycudaDriver` by pycuda itself, on a driver library of the host (`tools/host_libcuda.cpp`).

A process of its own, since a process has one libcuda. What is checked is how pycuda and the driver
library are called; the kernels are those of the emulation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path

import pytest
from cuda_emulation import SOURCES
from host_libcuda import build_library

_BEGIN = """
import numpy as np
from unblemish.kernels.cuda import CudaKernels, modules
import pycuda.driver as cuda
# Any image will do for this driver: none is compiled here.
modules._module = lambda source, capability: cuda.module_from_buffer(b"image of " + source.encode())
kernels = CudaKernels()
device = kernels.device
x = np.arange(1, 31, dtype=np.float32).reshape(2, 15)
"""


@pytest.fixture(scope="module")
def script(
    tmp_path_factory: pytest.TempPathFactory, emulated: Callable[[str], CDLL]
) -> Callable[[str], str]:
    """script(text) runs it after `_BEGIN` with the driver library of the host; what it printed."""
    folder = build_library(tmp_path_factory.mktemp("libcuda"))
    libraries = ":".join(emulated(source)._name for source in SOURCES)
    environment = {
        **os.environ, "LD_LIBRARY_PATH": str(folder), "EMULATION_LIBRARIES": libraries,
    }  # fmt: skip

    def run(text: str) -> str:
        command = [sys.executable, "-c", _BEGIN + text]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PyCUDA" not in done.stderr  # it complains of contexts left behind
        return done.stdout

    return run


def test_kernels_run_on_host_and_device_arrays(script: Callable[[str], str]) -> None:
    script("""
squared, largest = np.empty(2), np.empty(2)
kernels.norms(x, squared=squared, largest=largest)
np.testing.assert_allclose(squared, np.square(x, dtype=np.float64).sum(axis=1))
there = device.to_device(x)
moments = device.zeros((2, 15)), device.zeros((2, 15))
kernels.adam(there, device.to_device(np.ones_like(x)), *moments, step=1, lr=0.5)
np.testing.assert_allclose(device.to_host(there), x - 0.5, rtol=1e-6)
assert kernels.all_finite(there)
assert device.driver.device == (2, 0) and device.driver.multiprocessors == 2
assert device.driver.cache == 65536
""")


def test_foreign_arrays_are_used_in_place(script: Callable[[str], str]) -> None:
    script("""
from pycuda.gpuarray import GPUArray
theirs = GPUArray((2, 15), np.float32)
cuda.memcpy_htod_async(theirs.ptr, x, device.driver._stream)
squared = device.empty((2,), np.float64), device.empty((2,), np.float64)
kernels.norms(theirs, squared=squared[0], largest=squared[1])
np.testing.assert_allclose(device.to_host(squared[1]), [15, 30])
""")


def test_a_captured_graph_runs_again(script: Callable[[str], str]) -> None:
    script("""
from unblemish.errors import BackendError
there, grad = device.to_device(x), device.to_device(np.ones_like(x))
moments = device.zeros((2, 15)), device.zeros((2, 15))
move = lambda: kernels.adam(there, grad, *moments, step=1, lr=0.5, beta1=0.0)
driver = device.driver
driver.begin_capture()
try:
    move()
except BackendError as error:
    assert "Run the step once" in str(error), error
driver.abandon_capture()
move()
driver.begin_capture()
move()
graph = driver.end_capture()
before = device.to_host(there)
for _ in range(3):
    graph.launch()
after = device.to_host(there)
assert (after < before - 0.5).all()
driver.begin_capture()
try:
    driver.synchronise()
except BackendError as error:
    assert "was waited for while" in str(error), error
driver.abandon_capture()
driver.begin_capture()
try:
    driver.follow(1)
except BackendError as error:
    assert "another stream" in str(error), error
driver.abandon_capture()
driver.follow(1)
driver.lead(2)
event = driver.record()
event.wait()
assert event.reached()
first = driver.record(timing=True)
move()
graph.launch()
last = driver.record(timing=True)
driver.synchronise()
assert last.since(first) == 2  # this driver takes a millisecond for everything
try:
    last.since(event)
except BackendError as error:
    assert "CUDA failed at cuEventElapsedTime" in str(error), error
pinned = device.pinned((2, 15))
pinned[...] = x
device.upload(there, pinned)
device.copy(grad, there)
np.testing.assert_array_equal(device.to_host(grad), x)
""")


def test_ceilings_are_measured(script: Callable[[str], str]) -> None:
    script("""
from unblemish.errors import BackendError
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.profiling.device.ceilings import Sizes, measure_ceilings
from unblemish.runtime.profiling.device.timeline import Backlog
def refuse(path):
    raise BackendError("there is no engine here.")
backlog, sizes = Backlog(device, nbytes=1 << 16), Sizes(16, 1 << 16)
found = measure_ceilings(device, DeviceEngines(kernels, refuse), backlog, sizes)
# A millisecond for everything but an event.
assert (found.mark, found.least, found.node, found.launch) == (0, 1, 1, 1), found
assert found.gemm == {} and found.cache == 65536
np.testing.assert_allclose(
    [found.copy, found.cached, found.upload, found.download],
    1e-6 * np.array([2 * 8 * 65536, 2 * 16384, 65536, 65536]), rtol=1e-6,
)
""")


def test_errors_say_what_to_do(script: Callable[[str], str]) -> None:
    said = script("""
from unblemish.errors import BackendError
from unblemish.kernels.cuda.pycuda_driver import PycudaDriver
for call in (
    lambda: PycudaDriver(3),
    lambda: device.driver.copy(1 << 40, 1 << 41, 8),
):
    try:
        call()
    except BackendError as error:
        print(error)
""")
    assert "GPU 3 was asked for, and there are 1" in said
    assert "CUDA failed at cuMemcpyDtoDAsync" in said


def test_a_fat_binary_that_does_not_fit_is_replaced_by_nvcc(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    said = script(f"""
import importlib, pathlib
from unblemish.errors import BackendError
importlib.reload(modules)
modules.SOURCES = pathlib.Path({str(tmp_path)!r})
(modules.SOURCES / "norms.fatbin").write_bytes(b"stale")
modules.find_nvcc = lambda: None
try:
    modules._module("norms", (9, 0))
except BackendError as error:
    print(error)
modules._module.cache_clear()
modules.find_nvcc = lambda: "nvcc"
modules._compiled = lambda source, nvcc: print("compiles", source)
modules._module("norms", (9, 0))
(modules.SOURCES / "adam.fatbin").write_bytes(b"fresh")
modules._module("adam", (9, 0))
""")
    assert "no compiled CUDA kernels for compute capability 9.0" in said
    assert said.rstrip().endswith("compiles norms")


def test_doctor_runs_every_kernel(script: Callable[[str], str]) -> None:
    script("""
from unblemish.doctor.examination import _cuda_kernels
modules.has_binaries = lambda: True
found = _cuda_kernels()
assert (found.state, found.detail) == ("works", "compute capability 9.0, fat binaries"), found
""")
