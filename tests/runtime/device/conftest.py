"""CUDA kernels on the driver double, and engines made of NumPy that keep its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from emulated_backend import EmulatedBackend
from emulated_driver import EmulatedDriver

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends import Backend, open_backend


class NumpyPass:
    """A pass that runs when the stream gets there: outputs = function(inputs), by name."""

    def __init__(
        self,
        driver: EmulatedDriver,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        function: Callable[..., dict[str, Any]],
        capturable: bool = True,
    ) -> None:
        self.inputs, self.outputs, self.capturable = inputs, outputs, capturable
        self._driver, self._function = driver, function
        self.runs = 0

    def enqueue(self, stream: int) -> None:
        assert stream == self._driver.stream
        if self._driver.capturing:
            assert self.capturable, "an engine that cannot be captured was"
        self._driver.enqueue(self._run)

    def _run(self) -> None:
        self.runs += 1
        found = self._function(**{name: self._seen(a) for name, a in self.inputs.items()})
        for name, array in self.outputs.items():
            self._seen(array)[...] = found[name]

    def _seen(self, array: DeviceArray) -> Any:
        raw = self._driver.bytes_at(array.pointer, array.nbytes)
        return raw.view(array.dtype).reshape(array.shape)


@pytest.fixture
def driver(make_driver: Callable[..., EmulatedDriver]) -> EmulatedDriver:
    return make_driver()


@pytest.fixture
def kernels(driver: EmulatedDriver) -> CudaKernels:
    return CudaKernels(driver=driver)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def any_kernels(request: pytest.FixtureRequest) -> CudaKernels:
    """The kernels on the double, and on the GPU where there is one."""
    if request.param == "gpu":
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
        return CudaKernels()
    found: CudaKernels = request.getfixturevalue("kernels")
    return found


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def any_engines(request: pytest.FixtureRequest) -> tuple[CudaKernels, Backend]:
    """Kernels and a backend beside them: the doubles, and those of the GPU where there is one."""
    if request.param == "gpu":
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
        return CudaKernels(), open_backend("ort-cuda")
    return request.getfixturevalue("kernels"), EmulatedBackend()


@pytest.fixture
def numpy_pass(driver: EmulatedDriver) -> Callable[..., NumpyPass]:
    """numpy_pass(inputs, outputs, function, capturable=True)"""
    return lambda *arguments, **settings: NumpyPass(driver, *arguments, **settings)
