"""Read ONNX files whose weights lie in a file beside them. Needs onnx."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath

import onnx
from onnx.external_data_helper import uses_external_data

from unblemish.errors import ModelError


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read a graph with its weights in memory.

    `onnx.load` refuses weights in a file that has two names, which installers and backups that make
    hard links leave behind; what a bundle reads is vouched for by its manifest instead.

    Raises: ModelError where the weights are missing, cut short or outside the folder of the graph;
    as `onnx.load` where the graph itself cannot be read.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in external_tensors(model):
        content = _read(tensor, path)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = content
    return model


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Tensors of a graph, its nodes and their branches whose values are in another file."""
    return [tensor for tensor in _tensors(model.graph) if uses_external_data(tensor)]


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _read(tensor: onnx.TensorProto, graph: Path) -> bytes:
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = where.get("location", "")
    pure = PurePath(location)
    if not location or pure.is_absolute() or ".." in pure.parts:
        raise ModelError(
            f"{graph}: the values of '{tensor.name}' are said to be in '{location}', which is not "
            "inside the folder of the graph, so they are not read. Save the model anew."
        )
    try:
        with (graph.parent / location).open("rb") as stream:
            stream.seek(int(where.get("offset", 0)))
            length = int(where.get("length", -1))
            content: bytes = stream.read(length)
    except OSError as error:
        raise ModelError(
            f"{graph}: the values of '{tensor.name}' are in '{location}' beside it, which cannot "
            f"be read: {error.strerror or error}. Copy the whole folder again."
        ) from error
    if length >= 0 and len(content) != length:
        raise ModelError(
            f"{graph}: '{location}' holds {len(content)} of the {length} bytes of "
            f"'{tensor.name}': it is cut short. Copy the whole folder again."
        )
    return content
