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
from unblemish.runtime.backends.pairing import first_line, wire
from unblemish.runtime.backends.protocol import TensorSpec
from unblemish.runtime.device.inversion import GeneratorPasses

_PLACES = {1: "cpu", 2: "cuda"}


def cuda_session(path: str, device: Device) -> ort.InferenceSession:
    """Open a graph on the GPU of `device`, its work put on that stream.

    Raises: BackendError where this ONNX Runtime has no CUDA provider, or refuses the graph.
    """
    provider = "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"ONNX Runtime {ort.__version__} has no {provider}. Install onnxruntime-gpu in place "
            "of onnxruntime."
        )
    options = {
        "device_id": str(device.driver.device[1]),
        "user_compute_stream": str(device.driver.stream),
    }
    try:
        return ort.InferenceSession(str(path), providers=[(provider, options)])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise BackendError(f"ONNX Runtime cannot load {path}: {first_line(error)}.") from error


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


def ort_generator(
    device: Device, forward: ort.InferenceSession, backward: ort.InferenceSession, batch: int
) -> GeneratorPasses:
    """Forward and backward graph of a generator with one input and one image, for one batch size.

    What is kept for the way back stays where the forward pass wrote it.
    Raises: BackendError where the graphs do not belong together; as `OrtPass`.
    """
    (spec,) = specs_of(forward.get_inputs())
    z = device.zeros((batch, *(int(n) for n in spec.shape[1:])), spec.dtype)
    there = OrtPass(device, forward, {spec.name: z})
    wiring = wire(_Interface(forward), _Interface(backward))
    (image,) = wiring.cotangents
    cotangent = device.zeros(there.outputs[image].shape)
    known = {spec.name: z, **there.outputs}
    back = OrtPass(
        device, backward, {**{n: known[n] for n in wiring.kept}, f"ct_{image}": cotangent}
    )
    ((gradient, _),) = wiring.gradients.items()
    return GeneratorPasses(there, back, z, there.outputs[image], cotangent, back.outputs[gradient])


class _Interface:
    def __init__(self, session: ort.InferenceSession) -> None:
        self.inputs = all_inputs(session)
        self.outputs = specs_of(session.get_outputs())


def _place(device: tuple[int, int]) -> tuple[str, int]:
    return _PLACES[device[0]], device[1]


def _bound(name: str, array: DeviceArray) -> tuple[Any, ...]:
    dtype = np.dtype(array.dtype)
    return (name, *_place(array.device), dtype.type, list(array.shape), array.pointer)
