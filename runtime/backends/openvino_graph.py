"""Reading and compiling one graph for OpenVINO's CPU device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor

from unblemish.errors import BackendError
from unblemish.runtime.backends.pairing import first_line
from unblemish.runtime.backends.protocol import TensorSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A graph file and how to compile it.

    Args:
        channels_last: inputs and outputs that the caller hands over as (B, H, W, C) instead of
            (B, C, H, W): the layout of the engine's convolutions.
    """

    core: ov.Core
    path: str
    settings: Mapping[str, Any]
    channels_last: frozenset[str] = frozenset()

    def with_channels_last(self, names: Sequence[str]) -> Graph:
        """The same graph with these tensors in (B, H, W, C)."""
        return replace(self, channels_last=frozenset(names))

    def compile(self, shapes: Mapping[str, Shape] | None = None) -> ov.CompiledModel:
        """Compile, for any shapes or for those of the feeds given.

        Raises: BackendError where the file is missing or the graph is refused.
        """
        try:
            model = self.read()
            if shapes is not None:
                model.reshape({name: self._as_stored(name, s) for name, s in shapes.items()})
            return self.core.compile_model(self._in_layout(model), "CPU", dict(self.settings))
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO {ov.__version__} cannot load {self.path}: {first_line(error)}. "
                "Export the bundle again, or use the ONNX Runtime engine."
            ) from error

    def read(self) -> ov.Model:
        """Read the file. Raises: RuntimeError as OpenVINO does."""
        return separate_weights(self.core.read_model(self.path))

    def interface(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as the file states them, without compiling."""
        try:
            model = self.read()
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO {ov.__version__} cannot read {self.path}: {first_line(error)}. "
                "Export the bundle again."
            ) from error
        return specs(model.inputs), specs(model.outputs)

    def _as_stored(self, name: str, shape: Shape) -> list[int]:
        if name in self.channels_last:
            batch, height, width, channels = shape
            return [batch, channels, height, width]
        return list(shape)

    def _in_layout(self, model: ov.Model) -> ov.Model:
        if not self.channels_last:
            return model
        prepared = PrePostProcessor(model)
        for ports, place in ((model.inputs, prepared.input), (model.outputs, prepared.output)):
            for name in (name_of(port) for port in ports):
                if name in self.channels_last:
                    place(name).tensor().set_layout(ov.Layout("NHWC"))
                    place(name).model().set_layout(ov.Layout("NCHW"))
        return prepared.build()


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
            reader.replace_source_output(ov.op.Constant(node.data).output(0))
    return model


def specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Name, shape and dtype of inputs or outputs."""
    return tuple(_spec(port) for port in ports)


def name_of(port: Any) -> str:
    """The name of a tensor, as in the graph file."""
    return str(sorted(port.get_names())[0])


def _spec(port: Any) -> TensorSpec:
    # The names of symbolic dimensions do not survive reading.
    shape = tuple(
        int(d.get_length()) if d.is_static else "batch" if axis == 0 else f"size_{axis}"
        for axis, d in enumerate(port.get_partial_shape())
    )
    element = port.get_element_type()
    dtype = np.dtype(np.bool_ if element == ov.Type.boolean else element.to_dtype())
    return TensorSpec(name_of(port), shape, dtype)
