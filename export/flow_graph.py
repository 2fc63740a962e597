"""The flows of CFLOW-AD as one ONNX graph, its gradient, and the check against torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ModelError

if TYPE_CHECKING:
    from unblemish.export.models.flow import ConditionalFlow, Coupling

Array = NDArray[Any]
_OPSET, _IR = 21, 10
# Of the largest difference to a float64 flow, in units of the score's slope of 1 per channel.
VALUE_TOLERANCE = 1e-3
# Relative, l2, of 9 vectors in 10: one whose ReLUs lie at their kink may take the other side, and
# is then off by some hundredths. Of trained flows the median is 5e-7.
GRADIENT_TOLERANCE = 1e-4
_SMOOTH = 0.9
_CHECKED = 257  # vectors compared, no multiple of anything


def flow_model(flows: Sequence[ConditionalFlow]) -> onnx.ModelProto:
    """Write the log-densities of all maps as one graph.

    Inputs, for every map k: 'features_k' (cells_k, c_k) float32, 'position_row_k' and
    'position_column_k' (cells_k,) int64. Outputs: 'likelihood_k' (cells_k,) float32, the
    log-density per channel. What the place adds inside a coupling is constant for a row and for a
    column of the map, so that it is looked up instead of computed.
    """
    graph = _Graph()
    for number, flow in enumerate(flows):
        _write_flow(graph, flow, number)
    return graph.model()


def flow_graphs(model: onnx.ModelProto) -> dict[GraphRole, onnx.ModelProto]:
    """The graph and its gradient with respect to the features, optimised."""
    from unblemish.export import differentiate
    from unblemish.export.passes import optimise

    wrt = [v.name for v in model.graph.input if v.name.startswith("features_")]
    ways = differentiate(model, wrt=wrt, outputs=[v.name for v in model.graph.output])
    return {
        "flow": model,
        "flow_forward": optimise(ways.forward),
        "flow_backward": optimise(ways.backward),
    }


def with_cells(model: onnx.ModelProto, cells: Sequence[int]) -> onnx.ModelProto:
    """A copy of `flow_model`'s graph for so many vectors of every map."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    sizes = {f"cells_{k}": count for k, count in enumerate(cells)}
    for value in (*fixed.graph.input, *fixed.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        first.dim_value = sizes[first.dim_param]
    return fixed


def check_flow(
    flows: Sequence[ConditionalFlow], paths: Mapping[GraphRole, Path], seed: int
) -> dict[str, float]:
    """Compare the graphs as shipped with torch in float64: values and gradients.

    The vectors compared have the moments of normal ones; some are far from normal.
    Returns: figure -> difference, the largest of all vectors; of the gradients, that 1 vector in 10
        exceeds. Raises: ModelError naming the one out of tolerance.
    """
    from unblemish.runtime.backends.onnxruntime import OrtBackend

    engine = OrtBackend()
    plain = engine.program(str(paths["flow"]))
    pair = engine.pair(str(paths["flow_forward"]), str(paths["flow_backward"]))
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    cotangents: dict[str, Array] = {}
    expected, slopes = [], []
    for k, flow in enumerate(flows):
        cotangent = rng.standard_normal(_CHECKED).astype(np.float32)
        feeds |= _sample(flow, k, rng)
        value, slope = _by_torch(flow, k, feeds, cotangent)
        cotangents[f"likelihood_{k}"] = cotangent
        expected.append(value)
        slopes.append(slope)
    same = {name: array.copy() for name, array in plain.run(feeds).items()}
    found = {name: array.copy() for name, array in pair.forward(feeds).items()}
    gradients = pair.backward(cotangents)
    figures = {"likelihood": 0.0, "likelihood_gradient": 0.0}
    for k, (value, slope) in enumerate(zip(expected, slopes, strict=True)):
        scale = np.maximum(np.abs(value), 1.0)
        for outputs in (same, found):
            off = float((np.abs(outputs[f"likelihood_{k}"] - value) / scale).max())
            figures["likelihood"] = max(figures["likelihood"], off)
        off = _strayed(gradients[f"features_{k}"], slope)
        figures["likelihood_gradient"] = max(figures["likelihood_gradient"], off)
    _accept(figures)
    return figures


def _strayed(gradient: Array, slope: Array) -> float:
    """Difference of a vector's gradient, relative, that 9 vectors in 10 do not exceed."""
    lengths = np.maximum(np.linalg.norm(slope, axis=1), 1e-30)
    return float(np.quantile(np.linalg.norm(gradient - slope, axis=1) / lengths, _SMOOTH))


def _accept(figures: Mapping[str, float]) -> None:
    limits = (("likelihood", VALUE_TOLERANCE), ("likelihood_gradient", GRADIENT_TOLERANCE))
    for key, limit in limits:
        if not figures[key] <= limit:
            raise ModelError(
                f"the exported flow strays from the trained one: {key} by {figures[key]:.2e}, "
                f"allowed {limit:.0e}. Nothing was written; fit again with another --seed, or "
                "with fewer --blocks."
            )


def _sample(flow: ConditionalFlow, k: int, rng: np.random.Generator) -> dict[str, Array]:
    """Vectors with the moments of normal ones, every fourth of them moved away.

    Not the flow's own, `decode` of a normal z: its inverse scales reach exp(15) together, and
    float32 holds little of the vectors they make, which no image has.
    """
    row, column = (rng.integers(0, side, _CHECKED) for side in flow.grid)
    z = rng.standard_normal((_CHECKED, flow.channels))
    z[::4] *= 3
    features = np.linalg.solve(_numpy(flow.whitening), z.T).T + _numpy(flow.mean)
    return {
        f"features_{k}": np.ascontiguousarray(features, np.float32),
        f"position_row_{k}": row, f"position_column_{k}": column,
    }  # fmt: skip


def _by_torch(
    flow: ConditionalFlow, k: int, feeds: Mapping[str, Array], cotangent: Array
) -> tuple[Array, Array]:
    import copy

    import torch

    exact = copy.deepcopy(flow).double()
    features = torch.from_numpy(feeds[f"features_{k}"]).double().requires_grad_()
    places = (torch.from_numpy(feeds[f"position_{axis}_{k}"]) for axis in ("row", "column"))
    value = exact(features, *places)
    (slope,) = torch.autograd.grad(value, features, torch.from_numpy(cotangent).double())
    return value.detach().numpy(), slope.numpy()


class _Graph:
    """Nodes, weights, inputs and outputs, with names of their own."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, array: Array) -> str:
        kind = np.int64 if array.dtype == np.int64 else np.float32
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array, kind), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"v{len(self._nodes)}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def linear(self, x: str, weight: Array, bias: Array | None) -> str:
        """x weight^T + bias."""
        product = self.op("MatMul", x, self.weight(weight.T))
        return product if bias is None else self.op("Add", product, self.weight(bias))

    def model(self) -> onnx.ModelProto:
        from unblemish.export.passes import optimise

        graph = helper.make_graph(
            self._nodes, "flow", self._inputs, self._outputs, self._weights
        )  # fmt: skip
        opset = [helper.make_opsetid("", _OPSET)]
        return optimise(helper.make_model(graph, opset_imports=opset, ir_version=_IR))


def _write_flow(g: _Graph, flow: ConditionalFlow, number: int) -> None:
    from unblemish.export.models.flow import CLAMP

    cells = f"cells_{number}"
    features = g.input(f"features_{number}", TensorProto.FLOAT, [cells, flow.channels])
    row = g.input(f"position_row_{number}", TensorProto.INT64, [cells])
    column = g.input(f"position_column_{number}", TensorProto.INT64, [cells])
    mean, whitening = _numpy(flow.mean), _numpy(flow.whitening)
    blocks: list[Coupling] = list(flow.blocks)  # type: ignore[arg-type]
    order = _numpy(blocks[0].order) if blocks else np.arange(flow.channels)
    x = g.linear(features, whitening[order], -(whitening @ mean)[order])
    growth: str | None = None
    for index, block in enumerate(blocks):
        if index:
            x = g.op("Gather", x, g.weight(_numpy(block.order)), axis=1)
        x, more = _write_coupling(g, block, x, flow, row, column)
        growth = more if growth is None else g.op("Add", growth, more)
    axis = g.weight(np.array([1]))
    energy = g.op("ReduceSum", g.op("Mul", x, x), axis, keepdims=0)
    value = g.op("Mul", energy, g.weight(np.array(-0.5 / flow.channels)))
    if growth is not None:
        total = g.op("ReduceSum", growth, axis, keepdims=0)
        scaled = g.op("Mul", total, g.weight(np.array(CLAMP / flow.channels)))
        value = g.op("Add", value, scaled)
    constant = np.log(np.diagonal(whitening)).sum() / flow.channels - 0.5 * math.log(2 * math.pi)
    g.output(g.op("Add", value, g.weight(np.array(constant))), f"likelihood_{number}", [cells])


def _write_coupling(
    g: _Graph, block: Coupling, x: str, flow: ConditionalFlow, row: str, column: str
) -> tuple[str, str]:
    """Halves of the vector behind the coupling, and log-scales in units of the clamp."""
    from unblemish.export.models.flow import CLAMP

    moved = flow.channels - block.kept
    u, v = g.ops("Split", 2, x, g.weight(np.array([block.kept, moved])), axis=1)
    rows = _numpy(flow.rows) @ _numpy(block.row.weight).T + _numpy(block.inner.bias)
    columns = _numpy(flow.columns) @ _numpy(block.column.weight).T
    inner = g.linear(u, _numpy(block.inner.weight), None)
    for table, index in ((rows, row), (columns, column)):
        inner = g.op("Add", inner, g.op("Gather", g.weight(table), index, axis=0))
    hidden = g.op("Relu", inner)
    weight, bias = _numpy(block.outer.weight), _numpy(block.outer.bias)
    raw = g.linear(hidden, weight[:moved] / CLAMP, bias[:moved] / CLAMP)
    shift = g.linear(hidden, weight[moved:], bias[moved:])
    scale = g.op("Tanh", raw)
    factor = g.op("Exp", g.op("Mul", scale, g.weight(np.array(CLAMP))))
    new = g.op("Add", g.op("Mul", v, factor), shift)
    return g.op("Concat", u, new, axis=1), scale


def _numpy(tensor: Any) -> Array:
    """float64 where the tensor is floating, so that products of weights are rounded once."""
    array: Array = tensor.detach().numpy()
    return array if array.dtype == np.int64 else array.astype(np.float64)
