"""Make a dense layer out of another one's weight where it is that weight, column by column scaled.

The linear encoder of probabilistic PCA is such a layer: it projects on the columns that the decoder
draws with, each divided by its variance. As x (A diag(s)) = (x A) * s, both can read the one A.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

# Six roundings of 2^-24: of the two entries, of the two that the scale is read off, of the scale
# and of the product.
ROUNDING = 2.0**-21
Float = NDArray[np.float32]


def rescale_dense(graphs: Mapping[Any, onnx.ModelProto], least: int) -> dict[str, onnx.ModelProto]:
    """Rewrite Gemm(x, B, c) as Gemm(x, A) * s + c where B = A diag(s), A of an earlier graph.

    Args:
        graphs: by name, those whose weights stand as they are first. Not changed.
        least: bytes from which a weight is worth it.
    Returns: new graphs where a layer was rewritten, the given ones where none was.
    """
    known: dict[bytes, Float] = {}
    made = {}
    for name, model in graphs.items():
        weights = _weights(model, least)
        found = [
            layer
            for node in model.graph.node
            if _is_plain_gemm(node, weights) and weights[node.input[1]].tobytes() not in known
            and (layer := _find(node, weights[node.input[1]], known.values())) is not None
        ]  # fmt: skip
        made[name] = _rewritten(model, found) if found else model
        known |= {w.tobytes(): w for n, w in weights.items()}
    return made


@dataclass(frozen=True)
class _Layer:
    """Gemm `node`: x @ (matrix, transposed where it says) * scale."""

    node: NodeProto
    matrix: Float
    transposed: bool
    scale: Float


def _weights(model: onnx.ModelProto, least: int) -> dict[str, Float]:
    """Float32 matrices that one node reads and nobody can feed."""
    readers = [name for node in model.graph.node for name in node.input]
    fed = {value.name for value in model.graph.input}
    return {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) == 2 and t.name not in fed
        and 4 * t.dims[0] * t.dims[1] >= least and readers.count(t.name) == 1
    }  # fmt: skip


def _is_plain_gemm(node: NodeProto, weights: Mapping[str, Float]) -> bool:
    if node.op_type != "Gemm" or node.input[1] not in weights:
        return False
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return not given.get("transA", 0) and given.get("alpha", 1) == given.get("beta", 1) == 1


def _find(node: NodeProto, weight: Float, known: Iterable[Float]) -> _Layer | None:
    flipped = any(a.name == "transB" and a.i for a in node.attribute)
    wanted = weight.T if flipped else weight
    for matrix in known:
        for transposed in (False, True):
            factor = matrix.T if transposed else matrix
            scale = _scale(wanted, factor) if factor.shape == wanted.shape else None
            if scale is not None:
                return _Layer(node, matrix, transposed, scale)
    return None


def _scale(wanted: Float, factor: Float) -> Float | None:
    """s with wanted = factor diag(s) up to rounding, (columns,), or None."""
    rows = np.abs(factor).argmax(axis=0)
    columns = np.arange(factor.shape[1])
    pivots = factor[rows, columns].astype(np.float64)
    pivots[pivots == 0] = 1.0  # a column of zeros is a multiple of zeros alone, checked below
    scale = (wanted[rows, columns] / pivots).astype(np.float32)
    same: bool = np.allclose(wanted, factor * scale, rtol=ROUNDING, atol=0.0)
    return scale if same else None


def _rewritten(model: onnx.ModelProto, layers: list[_Layer]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    nodes: list[NodeProto] = []
    by_output = {layer.node.output[0]: layer for layer in layers}
    for node in model.graph.node:
        layer = by_output.get(node.output[0])
        nodes.extend([node] if layer is None else _nodes(layer))
    del graph.node[:]
    graph.node.extend(nodes)
    for layer in layers:
        name = layer.node.input[1]
        (old,) = (t for t in graph.initializer if t.name == name)
        graph.initializer.remove(old)
        graph.initializer.append(numpy_helper.from_array(layer.matrix, f"{name}_unscaled"))
        graph.initializer.append(numpy_helper.from_array(layer.scale, f"{name}_scale"))
    return made


def _nodes(layer: _Layer) -> list[NodeProto]:
    node, out = layer.node, layer.node.output[0]
    weight, bias = node.input[1], list(node.input[2:3])
    product, scaled = f"{out}_unscaled", f"{out}_unbiased" if bias else out
    trans = int(layer.transposed)
    nodes = [
        helper.make_node("Gemm", [node.input[0], f"{weight}_unscaled"], [product], transB=trans),
        helper.make_node("Mul", [product, f"{weight}_scale"], [scaled]),
    ]
    return [*nodes, helper.make_node("Add", [scaled, *bias], [out])] if bias else nodes
