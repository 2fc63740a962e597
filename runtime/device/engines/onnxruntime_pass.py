"""ONNX Runtime over device arrays of fixed address, on our stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from unblemish.errors import BackendError, ShapeError
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends.ort_session import specs_of
from unblemish.runtime.backends.pairing import first_line
from unblemish.runtime.backends.protocol import TensorSpec

_PLACES = {1: "cpu", 2: "cuda"}


class OrtGraph:
    """A session on the kernels' device and stream. Implements `DeviceGraph`.

    Args:
        session: opened with the stream of the device.
    """

    def __init__(self, device: Device, session: ort.InferenceSession) -> None:
        self._device, self._session = device, session
        self.inputs = all_inputs(session)
        self.outputs = specs_of(session.get_outputs())

    def over(self, inputs: Mapping[str, DeviceArray]) -> OrtPass:
        """See `DeviceGraph`."""
        return OrtPass(self._device, self._session, inputs)


class OrtPass:
    """A session with every tensor bound. Implements `StreamPass`.

    ONNX Runtime allocates while it runs, so that a run cannot be part of a graph of ours.

    Args:
        inputs: arrays of all inputs. Those of the outputs are allocated by their shapes, which a
            first run on zeros tells; it waits.
    Raises: ShapeError where an input is missing or does not fit; BackendError where the run fails.
    """

    capturable = False

    def __init__(
        self, device: Device, session: ort.InferenceSession, inputs: Mapping[str, DeviceArray]
    ) -> None:
        self._session, self._device = session, device
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        # Whoever needs the results waits for the stream; on a CPU there is nothing to wait for.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.inputs: Mapping[str, DeviceArray] = dict(inputs)
        for spec in all_inputs(session):
            self._bind_input(spec)
        self.outputs: Mapping[str, DeviceArray] = self._allocate()

    def enqueue(self, stream: int) -> None:
        """See `StreamPass`. Raises: BackendError where the engine fails, or for another stream."""
        if stream != self._device.driver.stream:
            raise BackendError("an ONNX Runtime session runs on the stream it was opened with.")
        self._run()

    def _bind_input(self, spec: TensorSpec) -> None:
        array = self.inputs.get(spec.name)
        if array is None:
            if spec.name in {node.name for node in self._session.get_overridable_initializers()}:
                return
            raise ShapeError(f"the graph needs input '{spec.name}'.")
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits:
            raise ShapeError(
                f"input '{spec.name}' must be {spec.dtype} of shape {spec.shape}; got "
                f"{array.dtype} of {array.shape}."
            )
        self._binding.bind_input(*_bound(spec.name, array))

    def _allocate(self) -> dict[str, DeviceArray]:
        specs = specs_of(self._session.get_outputs())
        place, number = _place(self._device.driver.device)
        for spec in specs:
            self._binding.bind_output(spec.name, place, number)
        self._device.driver.synchronise()
        self._run()
        values = self._binding.get_outputs()
        shapes = [tuple(value.shape()) for value in values]
        self._binding.clear_binding_outputs()
        outputs = {
            spec.name: self._device.empty(shape, spec.dtype)
            for spec, shape in zip(specs, shapes, strict=True)
        }
        for name, array in outputs.items():
            self._binding.bind_output(*_bound(name, array))
        return outputs

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # as in cuda_session
            raise BackendError(f"ONNX Runtime failed to run: {first_line(error)}.") from error


def all_inputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """Inputs of a graph, those with a default included."""
    nodes = (*session.get_inputs(), *session.get_overridable_initializers())
    return specs_of(nodes)


def _place(device: tuple[int, int]) -> tuple[str, int]:
    return _PLACES[device[0]], device[1]


def _bound(name: str, array: DeviceArray) -> tuple[Any, ...]:
    dtype = np.dtype(array.dtype)
    return (name, *_place(array.device), dtype.type, list(array.shape), array.pointer)
