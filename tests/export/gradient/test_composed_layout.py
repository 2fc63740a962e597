"""Random chains of layout, indexing, reduction and resize operators: float64 against autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from unblemish.export import differentiate
from unblemish.runtime.backends.torch_graph import TorchGraph

# float64 with a chain of a few dozen sums: 1e-12; the scales of Resize are float32 on both sides.
TOLERANCE = 1e-9

Draw = st.DrawFn


class Chain:
    """A graph under construction on one value of rank 4."""

    def __init__(self, draw: Draw, symbolic: bool) -> None:
        self.draw, self.nodes, self.constants = draw, [], []
        self.shape = [draw(st.integers(1, 3)), 4, draw(st.integers(2, 5)), draw(st.integers(2, 6))]
        self.start = list(self.shape)
        self.value, self.count, self.symbolic = "x", 0, symbolic

    def const(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def emit(self, op: str, *inputs: str, **attributes: Any) -> None:
        self.count += 1
        name = f"v{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        self.value = name

    def axis(self) -> int:
        return self.draw(st.integers(0, 3))


def transpose(c: Chain) -> None:
    perm = c.draw(st.permutations(range(4)))
    c.emit("Transpose", c.value, perm=perm)
    c.shape = [c.shape[p] for p in perm]


def cut(c: Chain) -> None:
    axis, step = c.axis(), c.draw(st.sampled_from([1, 2, -1, -2]))
    start, end = (0, 100) if step > 0 else (-1, -100)
    if c.shape[axis] > 2 and step == 1:
        start, end = 1, -1
    bounds = [c.const(np.array([v], np.int64)) for v in (start, end, axis, step)]
    c.emit("Slice", c.value, *bounds)
    c.shape[axis] = len(range(c.shape[axis])[slice(start, end if end > -100 else None, step)])


def pad(c: Chain) -> None:
    axis, mode = c.axis(), c.draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    most = min(2, c.shape[axis] - (1 if mode == "reflect" else 0))
    pads = np.zeros(8, np.int64)
    pads[axis], pads[axis + 4] = (c.draw(st.integers(0, max(most, 0))) for _ in range(2))
    c.emit("Pad", c.value, c.const(pads), mode=mode)
    c.shape[axis] += int(pads.sum())


def gather(c: Chain) -> None:
    axis = c.axis()
    size = c.shape[axis]
    index = c.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
    c.emit("Gather", c.value, c.const(np.array(index, np.int64)), axis=axis)
    c.shape[axis] = len(index)


def repeat(c: Chain) -> None:
    times = np.array([c.draw(st.integers(1, 2)) for _ in range(4)], np.int64)
    c.emit("Tile", c.value, c.const(times))
    c.shape = [n * int(t) for n, t in zip(c.shape, times, strict=True)]


def join(c: Chain) -> None:
    axis, first = c.axis(), c.value
    c.emit("Mul", first, first)
    c.emit("Concat", first, c.value, first, axis=axis)
    c.shape[axis] *= 3


def reduce(c: Chain) -> None:
    axis = c.axis()
    op = c.draw(
        st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceProd"])
    )
    before = c.value
    c.emit(op, before, c.const(np.array([axis], np.int64)), keepdims=1)
    c.emit("Sub", before, c.value)


def normalise(c: Chain) -> None:
    op = c.draw(st.sampled_from(["Softmax", "LogSoftmax"]))
    c.emit(op, c.value, axis=c.axis())


def accumulate(c: Chain) -> None:
    flags = {n: c.draw(st.integers(0, 1)) for n in ("exclusive", "reverse")}
    c.emit("CumSum", c.value, c.const(np.array(c.axis(), np.int64)), **flags)


def resample(c: Chain) -> None:
    mode = c.draw(st.sampled_from(["nearest", "linear", "cubic"]))
    factors = [c.draw(st.sampled_from([1.0, 2.0, 1.5])) for _ in range(2)]
    scales = np.array([1.0, 1.0, *factors], np.float32)
    c.emit("Resize", c.value, "", c.const(scales), mode=mode)
    c.shape[2:] = [int(n * f) for n, f in zip(c.shape[2:], factors, strict=True)]


def fold(c: Chain) -> None:
    n, ch, h, w = c.shape
    c.emit("Reshape", c.value, c.const(np.array([0, -1, w, h], np.int64)))
    c.shape = [n, ch, w, h]


STEPS = [transpose, cut, pad, gather, repeat, join, reduce, normalise, accumulate, resample, fold]
LARGEST = 4000


@st.composite
def models(draw: Draw) -> tuple[onnx.ModelProto, list[int]]:
    """A model of two to five random steps, and the shape of its input."""
    chain = Chain(draw, draw(st.booleans()))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=5)):
        step(chain)
        if np.prod(chain.shape) > LARGEST:
            break
    names = ["N", 4, "H", "W"] if chain.symbolic else chain.start
    graph = helper.make_graph(
        chain.nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, names)],
        [helper.make_tensor_value_info(chain.value, TensorProto.DOUBLE, ["a", "b", "c", "d"])],
        chain.constants,
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), chain.start


@settings(max_examples=60, deadline=None, derandomize=True)
@given(models())
def test_random_chain_gradient_equals_autograd(drawn: tuple[onnx.ModelProto, list[int]]) -> None:
    model, shape = drawn
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=shape)).requires_grad_()
    (y,) = TorchGraph(model)(x=x).values()
    ct = torch.from_numpy(rng.normal(size=tuple(y.shape)))
    (expected,) = torch.autograd.grad(y, x, ct)
    fused = differentiate(model, ["x"]).fused
    name = model.graph.output[0].name
    found = TorchGraph(fused)(**{"x": x.detach(), f"ct_{name}": ct})
    scale = max(1.0, float(expected.abs().max()))
    assert float((found["grad_x"].detach() - expected).abs().max()) <= TOLERANCE * scale
