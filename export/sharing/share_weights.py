"""One file for the weights of several graphs, each content stored once.

A generator, its forward and its backward graph and the encoder stand on the same weights: as ONNX
external data they share the bytes on disk, and engines that map the file share them in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from unblemish.errors import ModelError

FILE_NAME = "weights.bin"
LEAST = 4096
# Widest vector registers load 64 bytes. Engines that map the file round down to a page themselves.
ALIGNMENT = 64


@dataclass(frozen=True)
class SharedWeights:
    """Graphs whose large initialisers lie in one file beside them.

    Args:
        graphs: by the names given; to be written into one folder, together with `data`.
        data: content of the file; empty where no initialiser was large enough.
    """

    graphs: dict[str, onnx.ModelProto]
    data: bytes


def share_weights(
    graphs: Mapping[Any, onnx.ModelProto], file_name: str = FILE_NAME, least: int = LEAST
) -> SharedWeights:
    """Move large initialisers into one external-data file, equal contents once.

    Names, shapes and types stay, so an initialiser that is an input too can still be overridden.
    Initialisers inside the branches of If or Loop stay where they are.

    Args:
        graphs: by name; their weights loaded. Not changed.
        file_name: of the file, relative to the folder of the graphs.
        least: bytes from which an initialiser is moved.
    Returns: new graphs, and the content of the file, each tensor at a multiple of 64 bytes.
    Raises: ModelError where an initialiser is external already and was not loaded.
    """
    store = _Store(file_name)
    moved = {name: _moved(model, store, least) for name, model in graphs.items()}
    return SharedWeights(moved, bytes(store.data))


@dataclass
class _Store:
    file_name: str
    data: bytearray = field(default_factory=bytearray)
    offsets: dict[bytes, int] = field(default_factory=dict)

    def place(self, content: bytes) -> int:
        """Offset of `content`, appended where it is new."""
        key = hashlib.sha256(content).digest()
        if key not in self.offsets:
            self.data += bytes(-len(self.data) % ALIGNMENT)
            self.offsets[key] = len(self.data)
            self.data += content
        return self.offsets[key]


def _moved(model: onnx.ModelProto, store: _Store, least: int) -> onnx.ModelProto:
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    for tensor in moved.graph.initializer:
        if uses_external_data(tensor):
            raise ModelError(
                f"initialiser '{tensor.name}' keeps its values in another file, which is not "
                "loaded. Read the graph with onnx.load and its path."
            )
        if tensor.data_type == TensorProto.STRING:
            continue
        content = _content(tensor)
        if len(content) >= least:
            tensor.CopyFrom(_reference(tensor, store.file_name, store.place(content), len(content)))
    return moved


def _content(tensor: TensorProto) -> bytes:
    """The values as ONNX stores them raw: little-endian, row by row."""
    if not tensor.HasField("raw_data"):
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
    return bytes(tensor.raw_data)


def _reference(tensor: TensorProto, location: str, offset: int, length: int) -> TensorProto:
    """The tensor without its values, which stand in a file."""
    reference = TensorProto(
        name=tensor.name,
        doc_string=tensor.doc_string,
        dims=tensor.dims,
        data_type=tensor.data_type,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        reference.external_data.add(key=key, value=str(value))
    return reference
