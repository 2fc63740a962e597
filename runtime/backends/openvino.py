"""OpenVINO on the CPU: one infer request per graph, over buffers that are allocated once.

NaN: OpenVINO's Relu, Clip, Min, Max and comparisons may give a number for NaN where ONNX Runtime
gives NaN. Whoever must notice a NaN checks what goes in, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unblemish.errors import BackendError, MissingDependencyError, ShapeError
from unblemish.runtime.backends.pairing import Wiring, available_cores, check_feed, first_line, wire
from unblemish.runtime.backends.protocol import Array, TensorSpec

try:
    import openvino as ov
except ImportError as error:
    raise MissingDependencyError("openvino", "openvino", "The OpenVINO engine") from error

PRECISIONS = ("f32", "bf16", "f16")
Load = Callable[[], "ov.CompiledModel"]


class OpenVinoBackend:
    """Load graphs into OpenVINO's CPU device.

    Args:
        threads: threads of each engine; None takes every core this process may use.
        precision: what convolutions and products compute in. 'f32' is exact and the default; 'bf16'
            is faster on CPUs with native bfloat16 and wrong in the third digit.
    Raises: BackendError where the device does not offer `precision`.
    """

    name = "openvino"

    def __init__(self, threads: int | None = None, precision: str = "f32") -> None:
        self._threads = threads
        self._precision = precision
        self._core = ov.Core()
        offered = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision not in PRECISIONS or {"f32": "FP32", "f16": "FP16"}.get(
            precision, precision.upper()
        ) not in set(offered):
            raise BackendError(
                f"this CPU does not compute in '{precision}'; it offers {', '.join(offered)}. "
                "Use precision 'f32'."
            )

    def program(self, path: str, *, threads: int | None = None) -> OpenVinoProgram:
        """Load one graph. Raises: BackendError where OpenVINO refuses it."""
        return OpenVinoProgram(self._loader(path, threads))

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> OpenVinoPair:
        """Load a forward/backward pair. Raises: BackendError as `program`, or where they differ."""
        return OpenVinoPair(self._loader(forward, threads), self._loader(backward, threads))

    def _loader(self, path: str, threads: int | None) -> Load:
        # PINNING off: two engines of one process would be pinned to the same cores.
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": threads or self._threads or available_cores(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }

        def load() -> ov.CompiledModel:
            try:
                model = separate_weights(self._core.read_model(str(path)))
                return self._core.compile_model(model, "CPU", settings)
            except RuntimeError as error:
                raise BackendError(
                    f"OpenVINO {ov.__version__} cannot load {path}: {first_line(error)}. "
                    "Export the bundle again, or use the ONNX Runtime engine."
                ) from error

        return load


def separate_weights(model: ov.Model) -> ov.Model:
    """Give every reader of a constant matrix or kernel its own copy; changes and returns `model`.

    The CPU device caches repacked weights under a key that does not tell the readers apart: a
    square W read by x W and x W^T, or by Conv and ConvTranspose, as in every gradient graph, gives
    silently wrong results (2026.4: relative error above 1).
    """
    for node in model.get_ops():
        is_weight = node.get_type_name() == "Constant" and node.get_element_type().is_real()
        if not is_weight or len(node.get_output_shape(0)) < 2:
            continue
        readers = sorted(
            node.output(0).get_target_inputs(),
            key=lambda i: (i.get_node().get_name(), i.get_index()),
        )
        for reader in readers[1:]:
            copy = ov.op.Constant(node.data)
            reader.replace_source_output(copy.output(0))
    return model


class Bound:
    """One compiled graph whose inputs and outputs live in buffers that outlast the calls.

    Outputs grow with the largest batch seen; a smaller batch uses the front of the same memory.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._compiled = load()
        self.inputs = tuple(_spec(port) for port in self._compiled.inputs)
        self.outputs = tuple(_spec(port) for port in self._compiled.outputs)
        self._pool: dict[str, ov.Tensor] = {}  # output name -> flat, aligned memory
        self._start()

    def _start(self) -> None:
        self._request = self._compiled.create_infer_request()
        self._feeds: dict[str, Array] = {}
        self._views: dict[str, Array] = {}
        self._signature: tuple[tuple[int, ...], ...] | None = None

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run; the returned views are valid until the next run."""
        arrays = [self._feed(spec, feeds) for spec in self.inputs]
        signature = tuple(array.shape for array in arrays)
        if signature != self._signature:
            # A new request lets the engine choose the output shapes.
            self._start()
        self._bind_inputs(arrays)
        self._call()
        if signature != self._signature:
            self._take_outputs()
            self._signature = signature
        return self._views

    def _feed(self, spec: TensorSpec, feeds: Mapping[str, Array]) -> Array:
        if spec.name not in feeds:
            have = ", ".join(feeds) or "nothing"
            raise ShapeError(f"the graph needs input '{spec.name}'; it was given {have}.")
        array = feeds[spec.name]
        if array is not self._feeds.get(spec.name):
            check_feed(spec, array)
        return array

    def _bind_inputs(self, arrays: Sequence[Array]) -> None:
        for index, (spec, array) in enumerate(zip(self.inputs, arrays, strict=True)):
            if array is self._feeds.get(spec.name):
                continue  # bound already: the engine reads the caller's memory
            held = np.ascontiguousarray(array) if array.ndim else array
            self._request.set_input_tensor(index, ov.Tensor(held, shared_memory=True))
            self._feeds[spec.name] = held

    def _take_outputs(self) -> None:
        """Own the outputs from now on, in memory that the next batch size uses again."""
        self._views = {}
        for index, spec in enumerate(self.outputs):
            made = self._request.get_output_tensor(index)
            view = self._memory(spec, tuple(made.shape))
            np.copyto(view, made.data)
            self._views[spec.name] = view
            self._request.set_output_tensor(index, ov.Tensor(view, shared_memory=True))

    def _memory(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        size = int(np.prod(shape, dtype=np.int64))
        flat = self._pool.get(spec.name)
        if flat is None or flat.size < size:
            flat = ov.Tensor(ov.Type(spec.dtype), ov.Shape([size]))
            self._pool[spec.name] = flat
        return np.asarray(flat.data)[:size].reshape(shape)

    def _call(self) -> None:
        try:
            # Not infer(): on one thread it loses the engine's exception (seen with 2026.4).
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            # A failed run leaves shapes behind that can make later, valid runs fail: load anew.
            self._compiled = self._load()
            self._start()
            raise BackendError(
                f"OpenVINO failed while running a graph: {first_line(error)}."
            ) from error


class OpenVinoProgram:
    """One compiled graph."""

    def __init__(self, load: Load) -> None:
        self._bound = Bound(load)
        self.inputs = self._bound.inputs
        self.outputs = self._bound.outputs

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Program.run`."""
        return self._bound.run(feeds)


class OpenVinoPair:
    """A forward and a backward graph; the way back reads the kept tensors in place."""

    def __init__(self, forward: Load, backward: Load) -> None:
        self._forward = Bound(forward)
        self._backward = Bound(backward)
        self._wiring: Wiring = wire(self._forward, self._backward)
        self.inputs = self._forward.inputs
        self.outputs = self._wiring.outputs
        self._last: dict[str, Array] | None = None

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.forward`."""
        self._last = None
        results = self._forward.run(feeds)
        self._last = {**feeds, **results}
        return {spec.name: results[spec.name] for spec in self.outputs}

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.backward`. Raises: BackendError where no forward came before."""
        if self._last is None:
            raise BackendError("backward was called before forward. Call forward first.")
        results = self._backward.run(self._wiring.feeds(self._last, cotangents))
        return {self._wiring.gradients[name]: array for name, array in results.items()}


def _spec(port: Any) -> TensorSpec:
    names = port.get_names()
    shape = tuple(
        int(d.get_length()) if d.is_static else "batch" if axis == 0 else f"size_{axis}"
        for axis, d in enumerate(port.get_partial_shape())
    )
    dtype = (
        np.dtype(np.bool_)
        if port.get_element_type() == ov.Type.boolean
        else port.get_element_type().to_dtype()
    )
    return TensorSpec(sorted(names)[0], shape, np.dtype(dtype))
