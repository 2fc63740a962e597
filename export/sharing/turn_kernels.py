"""Make turned kernels of the kernels they came from, so that both need one copy.

The way back through a convolution is a convolution with the kernel turned over: input and output
channels exchanged, both spatial axes reversed. Export stores it as a constant of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

_REVERSE = {"starts": [-1, -1], "ends": [-(1 << 31), -(1 << 31)], "axes": [2, 3], "steps": [-1, -1]}


def turn_kernels(graphs: Mapping[Any, onnx.ModelProto], least: int) -> dict[str, onnx.ModelProto]:
    """Replace kernels that are turned copies of kernels of earlier graphs by two nodes.

    w (O, I, h, w) -> Transpose to (I, O, h, w) -> Slice with negative steps. Engines compute both
    once, when they load the graph. The values are the same bits.

    Args:
        graphs: by name, those whose kernels stand as they are first. Not changed.
        least: bytes from which a kernel is replaced.
    Returns: new graphs where a kernel was replaced, the given ones where none was.
    """
    seen: set[bytes] = set()
    made = {}
    for name, model in graphs.items():
        kernels = {t.name: numpy_helper.to_array(t) for t in _kernels(model, least)}
        digests = {n: _digest(k) for n, k in kernels.items()}
        copies = {
            n: turned(k)
            for n, k in kernels.items()
            if digests[n] not in seen and _digest(turned(k)) in seen
        }
        made[name] = _with_turns(model, copies) if copies else model
        seen |= {digests[n] for n in kernels if n not in copies}
    return made


def turned(kernel: NDArray[Any]) -> NDArray[Any]:
    """The kernel (O, I, h, w) of the way back, (I, O, h, w); its own inverse."""
    return np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])


def _kernels(model: onnx.ModelProto, least: int) -> list[TensorProto]:
    fed = {value.name for value in model.graph.input}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return [
        t
        for t in model.graph.initializer
        if len(t.dims) == 4 and t.data_type in floats and t.name not in fed
        and np.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize >= least
    ]  # fmt: skip


def _digest(kernel: NDArray[Any]) -> bytes:
    return hashlib.sha256(f"{kernel.dtype}{kernel.shape}".encode() + kernel.tobytes()).digest()


def _with_turns(model: onnx.ModelProto, kernels: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    names = {key: f"unblemish_turn_{key}" for key in _REVERSE}
    nodes: list[NodeProto] = []
    for tensor in graph.initializer:
        if tensor.name in kernels:
            name = tensor.name
            source, middle = f"{name}_unturned", f"{name}_exchanged"
            tensor.CopyFrom(numpy_helper.from_array(kernels[name], source))
            nodes.append(helper.make_node("Transpose", [source], [middle], perm=[1, 0, 2, 3]))
            nodes.append(helper.make_node("Slice", [middle, *names.values()], [name]))
    graph.initializer.extend(
        numpy_helper.from_array(np.array(_REVERSE[key], np.int64), name)
        for key, name in names.items()
    )
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return made
