"""A double of ONNX Runtime's sessions that enforces the order rules of its CUDA provider.

It runs every graph on the CPU provider, so results are real, and takes 'cuda' for a second memory:
what is bound must lie there, what was written must have been waited for before a run, what a run
gave must have been waited for before it is read, and a recorded run must be replayed on the very
tensors, shapes and thread that it was recorded with. A broken rule is an AssertionError.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Value:
    """A tensor in one of two memories. `written` and `computed` are what nobody waited for yet."""

    def __init__(self, real: Any, place: str) -> None:
        self.real, self.place = real, place
        self.written = self.computed = False

    def update_inplace(self, array: np.ndarray) -> None:
        assert tuple(array.shape) == tuple(self.real.shape()), "written with another shape"
        assert array.flags.c_contiguous, "written from an array with gaps"
        self.real.update_inplace(array)
        self.written = True

    def numpy(self) -> np.ndarray:
        assert not self.computed, "read before synchronize_outputs"
        return np.array(self.real.numpy())

    def shape(self) -> Any:
        return self.real.shape()


class Binding:
    def __init__(self, session: Session) -> None:
        self.session, self.real = session, session.real.io_binding()
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value | None] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        assert value.place == self.session.place, "an input on the host: a Memcpy node"
        self.inputs[name] = value
        self.real.bind_ortvalue_input(name, value.real)

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        assert value.place == self.session.place, "an output on the host: a Memcpy node"
        self.outputs[name] = value
        self.real.bind_ortvalue_output(name, value.real)

    def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0) -> None:
        assert device_type == self.session.place, "an output on the host: a Memcpy node"
        self.outputs[name] = None
        self.real.bind_output(name, "cpu")

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()
        self.real.clear_binding_outputs()

    def get_outputs(self) -> list[Value]:
        return [Value(real, self.session.place) for real in self.real.get_outputs()]

    def synchronize_inputs(self) -> None:
        for value in self.inputs.values():
            value.written = False
        self.session.log.append("inputs")

    def synchronize_outputs(self) -> None:
        for value in self.outputs.values():
            if value is not None:
                value.computed = False
        self.session.log.append("outputs")


class Session:
    """`providers` as the real one takes them."""

    def __init__(
        self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]
    ) -> None:
        self.providers, self.path = providers, path
        self.log: list[str] = []
        self.recorded: dict[str, tuple[Any, ...]] = {}
        told = dict(providers)
        self.place = "cpu" if providers[0][0] == "CPUExecutionProvider" else "cuda"
        self.graph = "1" in (
            told.get(CUDA, {}).get("enable_cuda_graph"),
            told.get(TENSORRT, {}).get("trt_cuda_graph_enable"),
        )
        self.real = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        if self.graph and any(node.type == "tensor(int64)" for node in self.real.get_inputs()):
            raise RuntimeError("This session cannot use the graph capture feature: not all nodes")

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def get_overridable_initializers(self) -> Any:
        return self.real.get_overridable_initializers()

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        assert not any(v.written for v in binding.inputs.values()), "run before synchronize_inputs"
        assert not any(v.computed for v in binding.inputs.values()), "run on what is not computed"
        number = None if options is None else options.entries.get("gpu_graph_id")
        assert (number is not None) == self.graph, (
            "a recorded session needs the number of its graph"
        )
        if self.graph and number != "-1":
            self._replay(binding, str(number))
        binding.real.synchronize_inputs()
        self.real.run_with_iobinding(binding.real)
        for value in binding.outputs.values():
            if value is not None:
                value.computed = True
        self.log.append(f"run {number}")

    def _replay(self, binding: Binding, number: str) -> None:
        assert None not in binding.outputs.values(), "recorded with outputs that may move"
        tensors = {**binding.inputs, **binding.outputs}
        now = (threading.get_ident(), {name: id(value) for name, value in tensors.items()})
        assert self.recorded.setdefault(number, now) == now, "replayed on other tensors or thread"


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


def allocate(shape: Any, element: Any, place: str = "cpu", device: int = 0) -> Value:
    return Value(ort.OrtValue.ortvalue_from_shape_and_type(shape, element, "cpu", 0), place)


def module(sessions: list[Session], refuse: tuple[str, ...] = ()) -> Any:
    """What stands in for the package; `sessions` collects those opened.

    Args:
        refuse: providers that give way, as they do where their libraries are missing.
    """

    def open_session(path: str, options: Any, providers: Any, enable_fallback: int) -> Session:
        assert not enable_fallback, "prints on stdout where a provider is missing"
        kept = [p for p in providers if p[0] not in refuse]
        sessions.append(Session(path, options, kept))
        return sessions[-1]

    return SimpleNamespace(
        **{name: getattr(ort, name) for name in (
            "__file__", "__version__", "SessionOptions", "ExecutionMode", "GraphOptimizationLevel",
            "OrtMemoryInfo", "OrtAllocatorType", "OrtMemType", "OrtArenaCfg",
            "create_and_register_allocator",
        )},
        InferenceSession=open_session,
        RunOptions=RunOptions,
        OrtValue=SimpleNamespace(ortvalue_from_shape_and_type=allocate),
        get_available_providers=lambda: [TENSORRT, CUDA, "CPUExecutionProvider"],
    )  # fmt: skip
