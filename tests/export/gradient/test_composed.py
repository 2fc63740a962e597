"""Random graphs composed of the rules, drawn by hypothesis: no pair of rules disturbs another."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

# Every step maps (N, 4, H, W) to the same shape; all are smooth or piecewise smooth.
UNARY = {
    "Tanh": {}, "Sigmoid": {}, "Softplus": {}, "Sin": {}, "Relu": {}, "LeakyRelu": {"alpha": 0.2},
    "Neg": {}, "Abs": {}, "Softsign": {}, "Identity": {}, "Elu": {"alpha": 1.3},
    "MaxPool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "AveragePool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
}  # fmt: skip
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
WEIGHTED = (
    "Conv",
    "ConvTranspose",
    "MatMul",
    "PRelu",
    "InstanceNormalization",
    "BatchNormalization",
)

step = st.tuples(
    st.sampled_from([*UNARY, *BINARY, *WEIGHTED]),
    st.integers(0, 30),  # which earlier values it reads
    st.integers(0, 30),
)


@st.composite
def graphs(draw):
    """A model of four to ten steps; every value may be read again by a later one."""
    steps = draw(st.lists(step, min_size=4, max_size=10))
    width = draw(st.sampled_from([1, 5]))
    batch = draw(st.sampled_from([1, 3]))
    symbolic = draw(st.booleans())
    return steps, width, batch, symbolic


def weights(op: str, index: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(index)
    shapes = {"Conv": [(4, 2, 3, 3), (4,)], "ConvTranspose": [(4, 4, 3, 3)],
              "MatMul": [(width, width)], "PRelu": [(4, 1, 1)],
              "InstanceNormalization": [(4,), (4,)],
              "BatchNormalization": [(4,), (4,), (4,), (4,)]}[op]  # fmt: skip
    return [rng.uniform(0.2, 0.8, shape).astype(np.float32) for shape in shapes]


ATTRIBUTES = {"Conv": {"pads": [1, 1, 1, 1], "group": 2}, "ConvTranspose": {"pads": [1, 1, 1, 1]}}


def build(steps, width, symbolic, batch):
    shape = ["N", 4, 5, "W"] if symbolic else [batch, 4, 5, width]
    values, nodes, constants = ["x"], [], []
    for index, (op, left, right) in enumerate(steps):
        inputs = [values[left % len(values)]]
        if op in BINARY:
            inputs.append(values[right % len(values)])
        if op in WEIGHTED:
            for array in weights(op, index, width):
                constants.append(numpy_helper.from_array(array, f"w{len(constants)}"))
                inputs.append(constants[-1].name)
        nodes.append(
            helper.make_node(op, inputs, [f"v{index}"], **UNARY.get(op, ATTRIBUTES.get(op, {})))
        )
        values.append(f"v{index}")
    # The sum of all values: nothing is dead, and every value is read.
    nodes.append(helper.make_node("Sum", values, ["s"]))
    nodes.append(helper.make_node("Tanh", ["s"], ["y"]))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(graphs())
def test_composed_graphs_pass_all_checks(check_gradients, drawn):
    steps, width, batch, symbolic = drawn
    model = build(steps, width, symbolic, batch)
    wrt = ["x", *(t.name for t in model.graph.initializer[:1])]
    check_gradients(model, wrt=wrt, sizes={"N": batch, "W": width})
