"""OpenVINO on the CPU: one infer request per graph, over buffers that are allocated once.

NaN: OpenVINO's Relu, Clip, Min, Max and comparisons may give a number for NaN where ONNX Runtime
gives NaN. Whoever must notice a NaN checks what goes in, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unblemish.cores import available_cores
from unblemish.errors import BackendError, MissingDependencyError, ShapeError
from unblemish.runtime.backends.pairing import Wiring, check_feed, first_line, wire
from unblemish.runtime.backends.protocol import Array, TensorSpec

try:
    import openvino as ov

    from unblemish.runtime.backends.openvino_graph import Graph, specs
except ImportError as error:
    raise MissingDependencyError("openvino", "openvino", "The OpenVINO engine") from error

PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
# Batch sizes for which a pair is compiled to fixed shapes; each holds the weights once more.
FIXED_SHAPES = 3
Signature = tuple[tuple[int, ...], ...]


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
        if PRECISIONS.get(precision) not in offered:
            raise BackendError(
                f"this CPU does not compute in '{precision}'; it offers {', '.join(offered)}. "
                "Use precision 'f32'."
            )

    def program(self, path: str, *, threads: int | None = None) -> OpenVinoProgram:
        """Load one graph. Raises: BackendError where OpenVINO refuses it."""
        return OpenVinoProgram(self._graph(path, threads))

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> OpenVinoPair:
        """Load a forward/backward pair. Raises: BackendError as `program`, or where they differ."""
        return OpenVinoPair(self._graph(forward, threads), self._graph(backward, threads))

    def _graph(self, path: str, threads: int | None) -> Graph:
        # PINNING off: two engines of one process would be pinned to the same cores.
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": threads or self._threads or available_cores(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        return Graph(self._core, str(path), settings)


class Bound:
    """One graph whose inputs and outputs live in buffers that outlast the calls.

    Outputs grow with the largest batch seen; a smaller batch uses the front of the same memory. The
    first `fixed` combinations of input shapes are compiled to these shapes: layout changes at the
    borders of the graph are then planned, where otherwise some take longer than a convolution.
    """

    def __init__(self, graph: Graph, fixed: int = 0) -> None:
        self._graph = graph
        self._general: ov.CompiledModel | None = None
        self._fixed: dict[Signature, ov.CompiledModel] = {}
        self._room = fixed
        self._pool: dict[str, ov.Tensor] = {}  # output name -> flat, aligned memory
        if fixed:
            self.inputs, self.outputs = graph.interface()
        else:
            self._general = graph.compile()
            self.inputs, self.outputs = specs(self._general.inputs), specs(self._general.outputs)
        self._forget()

    def prepare(self, channels_last: Sequence[str]) -> None:
        """Hand these tensors over as (B, H, W, C); compile for one item if nothing else is open."""
        self._graph = self._graph.with_channels_last(channels_last)
        shapes = [_of_one_item(spec, spec.name in channels_last) for spec in self.inputs]
        known = tuple(shape for shape in shapes if shape is not None)
        if len(known) == len(shapes):
            self._compiled(known)

    def _forget(self) -> None:
        self._request: ov.InferRequest | None = None
        self._feeds: dict[str, Array] = {}
        self._views: dict[str, Array] = {}
        self._signature: Signature | None = None

    def run(
        self, feeds: Mapping[str, Array], *, checked: frozenset[str] = frozenset()
    ) -> Mapping[str, Array]:
        """Run; the returned views are valid until the next run. `checked` feeds are trusted."""
        if len(feeds) > len(self.inputs):
            self._refuse_unknown(feeds)
        arrays = [self._feed(spec, feeds, spec.name in checked) for spec in self.inputs]
        signature = tuple(array.shape for array in arrays)
        if self._request is None or signature != self._signature:
            self._forget()
            # A new request lets the engine choose the output shapes.
            self._request = self._compiled(signature).create_infer_request()
        self._bind_inputs(self._request, arrays)
        self._call(self._request)
        if signature != self._signature:
            self._take_outputs(self._request)
            self._signature = signature
        return self._views

    def _compiled(self, signature: Signature) -> ov.CompiledModel:
        if signature in self._fixed:
            return self._fixed[signature]
        if len(self._fixed) < self._room:
            names = (spec.name for spec in self.inputs)
            made = self._graph.compile(dict(zip(names, signature, strict=True)))
            self._fixed[signature] = made
            return made
        if self._general is None:
            self._general = self._graph.compile()
        return self._general

    def _refuse_unknown(self, feeds: Mapping[str, Array]) -> None:
        unknown = ", ".join(sorted(set(feeds) - {spec.name for spec in self.inputs}))
        raise ShapeError(
            f"the graph takes no input '{unknown}'. OpenVINO makes a constant of an input with a "
            "default value: remove the initialiser of that name from the model."
        )

    def _feed(self, spec: TensorSpec, feeds: Mapping[str, Array], trusted: bool) -> Array:
        if spec.name not in feeds:
            have = ", ".join(feeds) or "nothing"
            raise ShapeError(f"the graph needs input '{spec.name}'; it was given {have}.")
        array = feeds[spec.name]
        if not trusted and array is not self._feeds.get(spec.name):
            check_feed(spec, array)
        return array

    def _bind_inputs(self, request: ov.InferRequest, arrays: Sequence[Array]) -> None:
        for index, (spec, array) in enumerate(zip(self.inputs, arrays, strict=True)):
            if array is self._feeds.get(spec.name):
                continue  # bound already: the engine reads the caller's memory
            held = np.ascontiguousarray(array) if array.ndim else array
            request.set_input_tensor(index, ov.Tensor(held, shared_memory=True))
            self._feeds[spec.name] = held

    def _take_outputs(self, request: ov.InferRequest) -> None:
        """Own the outputs from now on, in memory that the next batch size uses again."""
        self._views = {}
        for index, spec in enumerate(self.outputs):
            made = request.get_output_tensor(index)
            view = self._memory(spec, tuple(made.shape))
            np.copyto(view, made.data)
            self._views[spec.name] = view
            request.set_output_tensor(index, ov.Tensor(view, shared_memory=True))

    def _memory(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        size = int(np.prod(shape, dtype=np.int64))
        flat = self._pool.get(spec.name)
        if flat is None or flat.size < size:
            flat = ov.Tensor(ov.Type(spec.dtype), ov.Shape([size]))
            self._pool[spec.name] = flat
        return np.asarray(flat.data)[:size].reshape(shape)

    def _call(self, request: ov.InferRequest) -> None:
        try:
            # Not infer(): on one thread it loses the engine's exception (seen with 2026.4).
            request.start_async()
            request.wait()
        except RuntimeError as error:
            # A failed run leaves shapes behind that can make later, valid runs fail: load anew.
            self._general, self._fixed = None, {}
            self._forget()
            raise BackendError(
                f"OpenVINO failed while running a graph: {first_line(error)}."
            ) from error


class OpenVinoProgram:
    """One compiled graph."""

    def __init__(self, graph: Graph) -> None:
        self._bound = Bound(graph)
        self.inputs = self._bound.inputs
        self.outputs = self._bound.outputs

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Program.run`."""
        return self._bound.run(feeds)


class OpenVinoPair:
    """A forward and a backward graph; the way back reads the kept tensors in place.

    Kept feature maps pass from one graph to the other as (B, H, W, C), the layout that the engine's
    convolutions leave them in: a PGGAN-128 step in (B, C, H, W) takes 1.6 times as long.
    """

    def __init__(self, forward: Graph, backward: Graph) -> None:
        self._forward, self._backward = (
            Bound(graph, FIXED_SHAPES) for graph in (forward, backward)
        )
        self._wiring: Wiring = wire(self._forward, self._backward)
        self.inputs, self.outputs = self._forward.inputs, self._wiring.outputs
        inside = set(self._wiring.kept) - {spec.name for spec in (*self.inputs, *self.outputs)}
        kept = [spec for spec in self._forward.outputs if spec.name in inside]
        for bound in (self._forward, self._backward):
            bound.prepare([s.name for s in kept if _is_feature_map(s)])
        self._inside = frozenset(inside)
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
        feeds = self._wiring.feeds(self._last, cotangents)
        results = self._backward.run(feeds, checked=self._inside)
        return {self._wiring.gradients[name]: array for name, array in results.items()}


def _is_feature_map(spec: TensorSpec) -> bool:
    # One channel is the same memory in both layouts.
    return len(spec.shape) == 4 and spec.shape[1] != 1


def _of_one_item(spec: TensorSpec, channels_last: bool) -> tuple[int, ...] | None:
    shape = tuple(1 if axis == 0 and isinstance(d, str) else d for axis, d in enumerate(spec.shape))
    sizes = tuple(d for d in shape if isinstance(d, int))
    if len(sizes) < len(shape):
        return None
    return (sizes[0], *sizes[2:], sizes[1]) if channels_last else sizes
