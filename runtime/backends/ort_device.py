"""ONNX Runtime on a device: tensors stay there between forward and backward, runs are replayed.

Rules that ONNX Runtime sets for CUDA graphs, and where they are kept here: every address of a
recorded run stays the same (`_Slot` owns its tensors and its binding); no operator copies to the
host (a session that cannot be recorded is opened without); one thread per session (`DeviceBound`
refuses others); what was written is there before a run begins (`synchronize_inputs`), and what is
read has been computed (`synchronize_outputs`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.backends.ort_session import (
    CPU,
    CUDA,
    TENSORRT,
    failed,
    open_session,
    provider_options,
    specs_of,
)
from unblemish.runtime.backends.pairing import Wiring, check_feed, wire
from unblemish.runtime.backends.protocol import Array, TensorSpec

if TYPE_CHECKING:
    from unblemish.kernels.cuda import CudaKernels
    from unblemish.runtime.device.engines import DeviceEngines

NAMES = {"ort-cuda": CUDA, "ort-tensorrt": TENSORRT, "ort-cpu": CPU}
"""Name of the backend -> provider. 'ort-cpu' takes the same path on the host: tests run it."""
_SHAPES = 8  # sizes of a batch whose tensors are kept
_NOT_RECORDED = "-1"  # the first run of a shape: the engine allocates, to learn the shapes

Resident = Mapping[str, Any]  # name -> OrtValue on the device


class OrtDeviceBackend:
    """Load graphs into ONNX Runtime sessions on the provider behind `name`, see `NAMES`.

    Args:
        precision: of the bundle, see `provider_options`.
        stream: handle of the CUDA stream that everything runs on; None for the provider's own.
        graphs: record runs as CUDA graphs, where a session can be.
    """

    def __init__(
        self,
        name: str,
        threads: int | None = None,
        *,
        precision: str = "fp32",
        device: int = 0,
        stream: int | None = None,
        graphs: bool = True,
    ) -> None:
        self.name = name
        self.notes: list[str] = []  # what was done without, and why
        self._provider = NAMES[name]
        self._threads, self._precision = threads, precision
        self._device, self._stream = device, stream
        self._graphs = graphs and self._provider != CPU

    def program(self, path: str, *, threads: int | None = None) -> OrtDeviceProgram:
        """Load one graph. Raises: BackendError where the provider is missing or refuses it."""
        return OrtDeviceProgram(self._bound(path, threads))

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> OrtDevicePair:
        """Load a forward/backward pair. Raises: BackendError as `program`, or where they differ."""
        return OrtDevicePair(self._bound(forward, threads), self._bound(backward, threads))

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        """See `DeviceBackend`; runs are not recorded by ONNX Runtime, nor by us."""
        from unblemish.runtime.device.engines import DeviceEngines
        from unblemish.runtime.device.engines.onnxruntime_pass import OrtGraph

        def load(path: str) -> OrtGraph:
            options = provider_options(
                self._provider, precision=self._precision, device=kernels.device.driver.device[1],
                stream=kernels.stream,
            )  # fmt: skip
            return OrtGraph(kernels.device, open_session(path, self._threads, options))

        return DeviceEngines(kernels, load)

    def _bound(self, path: str, threads: int | None) -> DeviceBound:
        """A session that is recorded, or one that is not where the engine says why it cannot be."""
        count, place = threads or self._threads, "cpu" if self._provider == CPU else "cuda"
        if self._graphs:
            try:
                session = open_session(path, count, self._options(graph=True))
                return DeviceBound(session, place, self._device, recorded=True)
            except BackendError as error:
                refusal = error
        session = open_session(path, count, self._options(graph=False))
        if self._graphs:
            self.notes.append(f"{path} runs without a CUDA graph: {refusal}")
        return DeviceBound(session, place, self._device, recorded=False)

    def _options(self, *, graph: bool) -> list[tuple[str, dict[str, str]]]:
        return provider_options(
            self._provider, precision=self._precision, device=self._device, stream=self._stream,
            graph=graph,
        )  # fmt: skip


class _Slot:
    """Tensors and binding of one set of shapes; nothing in it moves once it has run."""

    def __init__(self, session: ort.InferenceSession, number: int) -> None:
        self.binding = session.io_binding()
        self.number = number
        self.own: dict[str, Any] = {}
        self.resident: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def follows(self, resident: Resident) -> bool:
        """Whether it reads these very tensors."""
        return all(self.resident.get(name) is value for name, value in resident.items())


class DeviceBound:
    """One session with its inputs and outputs on the device.

    Args:
        place: 'cuda' or 'cpu'. recorded: the session replays its runs as CUDA graphs.
    """

    def __init__(
        self, session: ort.InferenceSession, place: str, device: int, *, recorded: bool
    ) -> None:
        self.inputs = specs_of(session.get_inputs())
        self.optional = specs_of(session.get_overridable_initializers())
        self.outputs = specs_of(session.get_outputs())
        self._session, self._place, self._device = session, place, device
        self._recorded = recorded
        self._slots: dict[tuple[Any, ...], _Slot] = {}
        self._count = 0
        self._thread: int | None = None
        self.tensors: dict[str, Any] = {}  # inputs and outputs of the last run, on the device

    def run(self, feeds: Mapping[str, Array], resident: Resident | None = None) -> Resident:
        """Run; the outputs stay on the device, in place until the next run of these shapes.

        Args:
            feeds: arrays of the host. resident: tensors of the device, read where they are.
        Raises: ShapeError where an input is missing or of another shape or dtype than stated;
            BackendError where the engine fails, or where another thread runs a recorded session.
        """
        self._require_thread()
        given = {spec.name: self._host(spec, feeds) for spec in self._fed(feeds, resident or {})}
        key = tuple((name, array.shape) for name, array in given.items())
        slot = self._slots.get(key)
        if slot is None or not slot.follows(resident or {}):
            slot = self._make(key, given, resident or {})
        for name, array in given.items():
            slot.own[name].update_inplace(array)
        first = not slot.outputs
        self._call(slot, _NOT_RECORDED if first else str(slot.number))
        if first:
            self._adopt(slot)
        self.tensors = {**slot.own, **slot.resident, **slot.outputs}
        return slot.outputs

    def _fed(self, feeds: Mapping[str, Array], resident: Resident) -> list[TensorSpec]:
        """What must come from the host."""
        optional = [spec for spec in self.optional if spec.name in feeds]
        return [spec for spec in (*self.inputs, *optional) if spec.name not in resident]

    def _host(self, spec: TensorSpec, feeds: Mapping[str, Array]) -> Array:
        if spec.name not in feeds:
            have = ", ".join(feeds) or "nothing"
            raise ShapeError(f"the graph needs input '{spec.name}'; it was given {have}.")
        check_feed(spec, feeds[spec.name])
        return np.ascontiguousarray(feeds[spec.name])

    def _make(self, key: tuple[Any, ...], given: Mapping[str, Array], resident: Resident) -> _Slot:
        """Tensors for these shapes; of too many sizes the one made first is forgotten."""
        self._slots.pop(key, None)
        while len(self._slots) >= _SHAPES:
            self._slots.pop(next(iter(self._slots)))
        self._count += 1
        slot = _Slot(self._session, self._count)
        for name, array in given.items():
            slot.own[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype, self._place, self._device
            )
            slot.binding.bind_ortvalue_input(name, slot.own[name])
        for name, value in resident.items():
            slot.binding.bind_ortvalue_input(name, value)
        slot.resident = dict(resident)
        for spec in self.outputs:
            slot.binding.bind_output(spec.name, self._place, self._device)
        self._slots[key] = slot
        return slot

    def _adopt(self, slot: _Slot) -> None:
        """Go on writing to the tensors that the engine allocated in the first run."""
        values = slot.binding.get_outputs()
        slot.binding.clear_binding_outputs()
        for spec, value in zip(self.outputs, values, strict=True):
            slot.outputs[spec.name] = value
            slot.binding.bind_ortvalue_output(spec.name, value)

    def _call(self, slot: _Slot, number: str) -> None:
        options = None
        if self._recorded:
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", number)
        try:
            slot.binding.synchronize_inputs()
            self._session.run_with_iobinding(slot.binding, options)
            slot.binding.synchronize_outputs()
        except Exception as error:  # as in open_session
            raise failed(error) from error

    def _require_thread(self) -> None:
        here = threading.get_ident()
        self._thread = self._thread or here
        if self._recorded and self._thread != here:
            raise BackendError(
                "a session recorded as a CUDA graph was run by two threads, which ONNX Runtime "
                "forbids. Open one inspector per thread."
            )


class OrtDeviceProgram:
    """One graph in one session on the device; results come back to the host."""

    def __init__(self, bound: DeviceBound) -> None:
        self._bound = bound
        self.inputs, self.outputs = bound.inputs, bound.outputs

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Program.run`."""
        return {name: value.numpy() for name, value in self._bound.run(feeds).items()}


class OrtDevicePair:
    """A forward and a backward session; what is kept in between never leaves the device."""

    def __init__(self, forward: DeviceBound, backward: DeviceBound) -> None:
        self._forward, self._backward = forward, backward
        self.inputs = forward.inputs
        self._wiring: Wiring = wire(_Interface(forward), _Interface(backward))
        self.outputs = self._wiring.outputs
        self._last: dict[str, Any] = {}
        self._results: dict[str, Array] = {}

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.forward`."""
        found = self._forward.run(feeds)
        self._last = self._forward.tensors
        self._results = {spec.name: found[spec.name].numpy() for spec in self.outputs}
        return self._results

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.backward`. Raises: BackendError where no forward came before."""
        if not self._last:
            raise BackendError("backward was called before forward. Call forward first.")
        kept = {name: self._last[name] for name in self._wiring.kept}
        feeds = self._wiring.feeds({**kept, **self._results}, cotangents)
        given = {name: array for name, array in feeds.items() if name not in kept}
        found = self._backward.run(given, kept)
        return {self._wiring.gradients[name]: value.numpy() for name, value in found.items()}


class _Interface:
    def __init__(self, bound: DeviceBound) -> None:
        self.inputs: tuple[TensorSpec, ...] = (*bound.inputs, *bound.optional)
        self.outputs: tuple[TensorSpec, ...] = bound.outputs
