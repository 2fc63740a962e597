"""Let every Resize state scales instead of sizes it computes, so that shapes stay known behind it.

Exporters write a resize of a batch to H x W as sizes (Shape(x)[:2], H, W). What comes out is then
of unknown batch to shape inference, as behind the Reshapes of `keep_batch`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]


_POLICY = "keep_aspect_ratio_policy"  # of any other the sizes are no sizes, but bounds


def scale_resizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn sizes that keep the leading axes and fix the others to constant scales; returns a copy.

    It holds where the fixed axes are static in the input too, and floor(length * scale), which is
    what scales give, is the size asked for in float32. The sampled places stay the same: they go by
    size / length, and that is the scale.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = onnx.shape_inference.infer_shapes(result, data_prop=True).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
    }
    for number, node in enumerate(result.graph.node):
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3]:
            continue
        if any(a.name == "axes" or (a.s not in (b"", b"stretch") and a.name == _POLICY)
               for a in node.attribute):  # fmt: skip
            continue
        sizes, lengths = _asked(result, node), shapes.get(node.input[0], [])
        scales = _scales(sizes, lengths)
        if scales is not None:
            name = f"{node.output[0]}_scales_{number}"
            result.graph.initializer.append(numpy_helper.from_array(scales, name))
            node.input[2] = name
            del node.input[3]
            for attribute in [a for a in node.attribute if a.name == _POLICY]:
                node.attribute.remove(attribute)  # it is for sizes alone
    return result


def _scales(sizes: list[int | None], lengths: list[int]) -> Array | None:
    if not sizes or len(sizes) != len(lengths):
        return None
    scales = np.ones(len(sizes), np.float32)
    for axis, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        if size is None:  # as the input has it
            continue
        if not length:
            return None
        scales[axis] = size / length
        if np.floor(np.float32(length) * scales[axis]) != size:
            return None
    return scales


def _asked(model: onnx.ModelProto, node: onnx.NodeProto) -> list[int | None]:
    """The sizes of a Resize, None for an axis that keeps its length; [] where they are unclear."""
    makers = {name: n for n in model.graph.node for name in n.output}
    tensors = {t.name: t for t in model.graph.initializer}
    concat = makers.get(node.input[3])
    if concat is None or concat.op_type != "Concat":
        return []
    sizes: list[int | None] = []
    for name in concat.input:
        if name in tensors:
            sizes += [int(v) for v in numpy_helper.to_array(tensors[name]).reshape(-1)]
            continue
        count = _kept(makers.get(name), node.input[0], len(sizes))
        if count is None:
            return []
        sizes += [None] * count
    return sizes


def _kept(maker: onnx.NodeProto | None, data: str, first: int) -> int | None:
    """How many axes of `data`, from `first` on, a Shape node gives; None for any other node."""
    if maker is None or maker.op_type != "Shape" or maker.input[0] != data:
        return None
    bounds = {a.name: a.i for a in maker.attribute}
    if bounds.get("start", 0) != first or bounds.get("end", 0) <= first:
        return None
    return int(bounds["end"]) - first


def infer_resized(model: onnx.ModelProto, strict: bool) -> onnx.ModelProto:
    """Infer shapes; an axis that a Resize scales by 1 keeps its symbol, which ONNX forgets.

    Args:
        model: it is changed: value infos are added.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    resizes = [
        (node, numpy_helper.to_array(tensors[node.input[2]]))
        for node in model.graph.node
        if node.op_type == "Resize" and len(node.input) == 3 and node.input[2] in tensors
    ]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
    for _ in resizes:  # the shape behind one decides about the next
        if not _keep_symbols(model, inferred, resizes):
            break
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
    return inferred


def _keep_symbols(
    model: onnx.ModelProto, inferred: onnx.ModelProto, resizes: list[tuple[onnx.NodeProto, Array]]
) -> bool:
    """Add the value info of every Resize whose symbols were lost; whether there was one."""
    graph = inferred.graph
    values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    stated = {v.name for v in (*model.graph.value_info, *model.graph.output)}
    same: dict[str, str] = {}  # symbol that inference made up -> the one it is
    found = False
    for node, scales in resizes:
        source, made = values.get(node.input[0]), values.get(node.output[0])
        if source is None or made is None or made.name in stated:
            continue
        dims, lengths = made.type.tensor_type.shape.dim, source.type.tensor_type.shape.dim
        if not len(dims) == len(lengths) == len(scales):
            continue
        lost = False
        for dim, kept, scale in zip(dims, lengths, scales, strict=True):
            symbol = same.get(kept.dim_param, kept.dim_param)
            if scale == 1 and symbol and dim.dim_param != symbol:
                same[dim.dim_param] = symbol
                dim.dim_param, lost = symbol, True
        if lost:
            model.graph.value_info.append(made)
            found = True
    return found
