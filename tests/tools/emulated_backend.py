"""ONNX Runtime on the CPU as the engine of a device whose memory is the CPU's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emulated_driver import EmulatedDriver

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.ort_session import open_session
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.onnxruntime_pass import OrtGraph, OrtPass


class EmulatedBackend(OrtBackend):
    """A backend for searches on the driver double; `capturable` as of an engine that can be."""

    name = "emulated"

    def __init__(self, threads: int | None = 1, *, capturable: bool = True) -> None:
        super().__init__(threads)
        self.capturable = capturable

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        """See `DeviceBackend`."""
        return DeviceEngines(kernels, lambda path: _Graph(kernels, path, self.capturable))


class _Graph(OrtGraph):
    def __init__(self, kernels: CudaKernels, path: str, capturable: bool) -> None:
        super().__init__(kernels.device, open_session(path, 1))
        self.capturable, self._name = capturable, Path(path).stem

    def over(self, inputs: Mapping[str, DeviceArray]) -> OrtPass:
        inner = super().over(inputs)
        return _LaterPass(inner, self._device.driver, self.capturable, self._name)  # type: ignore[return-value, arg-type]


class _LaterPass:
    """A pass whose engine runs when the stream gets there, as on a GPU.

    It takes what the driver's clock has for the name of its file.
    """

    def __init__(self, inner: OrtPass, driver: EmulatedDriver, capturable: bool, name: str) -> None:
        self.inputs, self.outputs, self.capturable = inner.inputs, inner.outputs, capturable
        self._inner, self._driver, self._name = inner, driver, name

    def enqueue(self, stream: int) -> None:
        assert self.capturable or not self._driver.capturing
        self._driver.enqueue(lambda: self._inner.enqueue(stream), self._name)
