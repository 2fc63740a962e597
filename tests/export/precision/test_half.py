"""float16 and bfloat16 by casts: types, values, and gradients of tiny cotangents."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from unblemish.export import differentiate
from unblemish.export.passes import count_operators, optimise
from unblemish.export.precision.elements import bits, rounded, tensor_of
from unblemish.export.precision.emulate import emulate
from unblemish.export.precision.graphs import emulated, half_graph, half_graphs
from unblemish.export.precision.half import halve
from unblemish.export.precision.scale_cotangents import scale_cotangents

FP16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
# Rounding of operands, weights and results of two layers, relative l2: half a unit in the last
# place is 2^-12 in float16 and 2^-9 in bfloat16, and some five of them add up.
CLOSE = {"fp16": 2e-3, "bf16": 2e-2}
NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


def network(seed: int = 0, gain: float = 0.3) -> onnx.ModelProto:
    """Two convolutions with a ReLU, a norm by hand between them, and a sigmoid."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[batch,3,9,7] x) => (float[batch,2,9,7] y) {
            a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a)
            m = ReduceMean<keepdims = 1>(b, axes) c = Sub(b, m) d = LeakyRelu<alpha = 0.2>(c)
            e = Conv<pads = [1,1,1,1]>(d, v) y = Sigmoid(e) }""")
    rng = np.random.default_rng(seed)
    for name, shape in {"w": (5, 3, 3, 3), "v": (2, 5, 3, 3)}.items():
        array = gain * rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {i.name: feeds[i.name].astype(NUMPY[i.type]) for i in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def relative(found: Any, expected: Any) -> float:
    gap = np.linalg.norm(found.astype(np.float64) - expected)
    return float(gap / np.linalg.norm(expected.astype(np.float64)))


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}


def elements(*values: onnx.ValueInfoProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_bits_of_bfloat16_agree_with_ml_dtypes() -> None:
    half = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 4099, np.uint32).view(np.float32)
    special = [0, -0.0, np.inf, -np.inf, np.nan, 1.00390625, 3.4e38, 1e-45]
    x = np.concatenate([x, np.array(special, np.float32)])
    with np.errstate(invalid="ignore"):
        expected = x.astype(half.bfloat16).view(np.uint16)
    found = bits(x, BF16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(found[~nan], expected[~nan])
    assert np.isnan(rounded(x, BF16)[nan]).all()


def test_bits_of_float16_agree_with_numpy() -> None:
    x = np.random.default_rng(0).standard_normal((3, 19)).astype(np.float32)
    np.testing.assert_array_equal(bits(x, FP16), x.astype(np.float16).view(np.uint16))
    assert np.isinf(rounded(np.float32([1e6]), FP16)).all()


@pytest.mark.parametrize("element", [FP16, BF16])
def test_tensor_of_a_half_type_is_read_by_onnx(element: int) -> None:
    x = np.linspace(-2, 2, 7, dtype=np.float32).reshape(7, 1)
    tensor = tensor_of(x, "w", element)
    onnx.checker.check_tensor(tensor)
    found = numpy_helper.to_array(tensor).astype(np.float32)
    np.testing.assert_array_equal(found, rounded(x, element))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_graph_is_of_one_type_per_operator(precision: str) -> None:
    element = {"fp16": FP16, "bf16": BF16}[precision]
    model = half_graph(network(), precision)
    found = types(model)
    assert found["a"] == found["b"] == element  # the convolution, and what is light behind it
    assert found["m"] == found["c"] == found["d"] == TensorProto.FLOAT  # the mean and its readers
    weights = {t.name: t.data_type for t in model.graph.initializer}
    assert sorted(weights.values()) == sorted([element, element, TensorProto.INT64])
    ends = (*model.graph.input, *model.graph.output)
    assert [value.type.tensor_type.elem_type for value in ends] == [TensorProto.FLOAT] * 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_half_graph_gives_the_image_within_its_rounding(precision: str, batch: int) -> None:
    x = np.random.default_rng(1).standard_normal((batch, 3, 9, 7)).astype(np.float32)
    model = half_graph(network(), precision)
    (trial,) = emulated({"generator": model}, precision).values()
    found, expected = run(trial, {"x": x})["y"], run(network(), {"x": x})["y"]
    error = relative(found, expected)
    assert 1e-7 < error < CLOSE[precision]


def test_emulation_rounds_what_the_cpu_leaves_unrounded() -> None:
    """Each result as float16 holds it: by hand, in NumPy, from the rounded operands."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[4,64] x) => (float[4,8] y) { h = MatMul(x, w) y = Relu(h) }""")
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((64, 8)), rng.standard_normal((4, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w.astype(np.float32), "w"))
    found = run(emulate(halve(model, FP16).model, FP16).model, {"x": x})["y"]
    exact = x.astype(np.float16).astype(np.float64) @ w.astype(np.float32).astype(np.float16)
    np.testing.assert_allclose(found, np.maximum(exact, 0), rtol=2**-11, atol=1e-6)
    np.testing.assert_array_equal(found, found.astype(np.float16))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_gradients_of_small_cotangents_survive(precision: str, size: float) -> None:
    """Below 6e-8 float16 knows nothing but zero; one item is a thousand times larger."""
    plain = optimise(network())
    fused = differentiate(plain, ["x"]).fused
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 9, 7)).astype(np.float32)
    ct = size * rng.standard_normal((2, 2, 9, 7)).astype(np.float32)
    ct[1] *= 1e3
    feeds = {"x": x, "ct_y": ct.astype(np.float32)}
    (trial,) = emulated({"fused": half_graph(fused, precision)}, precision).values()
    found, expected = run(trial, feeds)["grad_x"], run(fused, feeds)["grad_x"]
    for one, other in zip(found, expected, strict=True):
        # A ReLU at its kink may take the other side: a few percent of these few pixels.
        assert relative(one, other) < 20 * CLOSE[precision]


def test_gradients_that_shrink_on_their_way_survive() -> None:
    """Two layers that make them 1e-6 of what they were: float16 has some bits left of 256."""
    fused = differentiate(optimise(network(gain=3e-4)), ["x"]).fused
    rng = np.random.default_rng(6)
    feeds = {n: rng.standard_normal((2, c, 9, 7)) for n, c in (("x", 3), ("ct_y", 2))}
    (trial,) = emulated({"fused": half_graph(fused, "fp16")}, "fp16").values()
    found, expected = run(trial, feeds)["grad_x"], run(fused, feeds)["grad_x"]
    assert np.abs(expected).max() < 1e-5
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 20 * CLOSE["fp16"]


def test_scaled_cotangents_of_zero_give_gradients_of_zero() -> None:
    fused = scale_cotangents(differentiate(network(), ["x"]).fused).model
    x = np.random.default_rng(3).standard_normal((2, 3, 9, 7)).astype(np.float32)
    found = run(fused, {"x": x, "ct_y": np.zeros((2, 2, 9, 7))})["grad_x"]
    assert (found == 0).all()


def test_scaled_cotangents_change_float32_gradients_by_rounding_alone() -> None:
    fused = differentiate(network(), ["x"]).fused
    result = scale_cotangents(fused)
    assert result.changed == 2
    rng = np.random.default_rng(4)
    feeds = {"x": rng.standard_normal((3, 3, 9, 7)), "ct_y": rng.standard_normal((3, 2, 9, 7))}
    found, expected = run(result.model, feeds), run(fused, feeds)
    # Two roundings of float32 more, on sums of some tens of products.
    np.testing.assert_allclose(found["grad_x"], expected["grad_x"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["y"], expected["y"])


def test_scale_of_weight_gradients_is_one_for_all_images() -> None:
    """A weight's gradient sums over the images, so no scale of one image can be taken out of it."""
    model = network()
    fused = differentiate(model, ["x", "w"]).fused
    rng = np.random.default_rng(5)
    feeds = {"x": rng.standard_normal((2, 3, 9, 7)), "ct_y": rng.standard_normal((2, 2, 9, 7))}
    feeds["ct_y"][0] *= 1e-3
    feeds["w"] = numpy_helper.to_array(model.graph.initializer[0])
    found, expected = run(scale_cotangents(fused).model, feeds), run(fused, feeds)
    for name in ("grad_x", "grad_w"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6)


def test_scale_cotangents_leaves_a_plain_graph_alone() -> None:
    result = scale_cotangents(network())
    assert result.changed == 0
    assert "no cotangents" in result.reasons[0]


def test_weights_that_do_not_fit_keep_their_operator_in_float32() -> None:
    model = network(gain=1e6)
    result = halve(model, FP16)
    assert result.changed == 0
    assert "does not fit" in result.reasons[0]
    assert halve(model, BF16).changed > 0  # bfloat16 reaches as far as float32


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_pair_hands_over_what_both_graphs_agree_on(precision: str) -> None:
    model = network()
    square = next(node for node in model.graph.node if node.op_type == "Relu")
    square.op_type, square.input[:] = "Mul", ["a", "a"]  # whose way back reads the convolution
    ways = differentiate(optimise(model), ["x"])
    made = half_graphs(
        {"generator_forward": ways.forward, "generator_backward": ways.backward}, precision
    )
    there, back = made["generator_forward"], made["generator_backward"]
    given = elements(*there.graph.output, *there.graph.input)
    read = elements(*back.graph.input)
    shared = set(given) & set(read)
    assert {name: read[name] for name in shared} == {name: given[name] for name in shared}
    assert given["y"] == TensorProto.FLOAT
    assert BF16 not in given.values()
    assert (FP16 in given.values()) == (precision == "fp16")


def test_masks_are_cast_once_and_stored_halves_widen_nothing() -> None:
    """A weight stored in float16 with a Cast behind it is read as it is stored."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[batch,4] x, bool[batch,4] kept) => (float[batch,4] y) {
            w = Cast<to = 1>(stored) m = Cast<to = 1>(kept) h = MatMul(x, w) k = Mul(h, m)
            y = MatMul(k, w) }""")
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(w, "stored"))
    made = halve(model, FP16).model
    assert count_operators(made) == {"Cast": 3, "MatMul": 2, "Mul": 1}  # x, kept, y
    np.testing.assert_array_equal(numpy_helper.to_array(made.graph.initializer[0]), w)


def test_value_that_a_subgraph_reads_keeps_its_type() -> None:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[2,2] x, bool c) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> {
            h = MatMul(x, w)
            k = If(c) <
                then_branch = t () => (float[2,2] a) { a = Relu(h) },
                else_branch = e () => (float[2,2] b) { b = Neg(h) }>
            y = MatMul(k, w) }""")
    made = halve(model, FP16).model
    onnx.checker.check_model(made, full_check=True)
    assert types(made)["h"] == TensorProto.FLOAT
    x = np.array([[1, 2], [3, 4]], np.float32)
    w = np.array([[1, 2], [3, 4]], np.float32)
    found = run(made, {"x": x, "c": np.array(False)})["y"]
    np.testing.assert_allclose(found, -(x @ w) @ w)  # whole numbers below 2048 are exact


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_pair_through_a_pixel_norm_agrees_with_float32(precision: str) -> None:
    """Halves meet float32 operators: c = a / sqrt(mean a^2)."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[batch,3,9,7] x) => (float[batch,2,9,7] y) <float eps = {1e-8}> {
            a = Conv<pads = [1,1,1,1]>(x, w) q = Mul(a, a) m = ReduceMean<keepdims = 1>(q, axes)
            t = Add(m, eps) s = Sqrt(t) r = Reciprocal(s) c = Mul(a, r)
            y = Conv<pads = [1,1,1,1]>(c, v) }""")
    model.graph.initializer.extend(network().graph.initializer)
    ways = differentiate(optimise(model), ["x"])
    graphs = {
        "generator_forward": optimise(ways.forward),
        "generator_backward": optimise(ways.backward),
    }
    trial = emulated(half_graphs(graphs, precision), precision)  # type: ignore[arg-type]
    rng = np.random.default_rng(7)
    x, ct = rng.standard_normal((3, 3, 9, 7)), 1e-4 * rng.standard_normal((3, 2, 9, 7))
    gradients = []
    for pair in (trial, graphs):
        there = run(pair["generator_forward"], {"x": x})
        back = run(pair["generator_backward"], {**there, "x": x, "ct_y": ct})
        gradients.append(back["grad_x"])
    assert 1e-6 < relative(*gradients) < 2 * CLOSE[precision]


def test_half_input_before_float32_operators_is_widened() -> None:
    """What is behind it was float32 and stays so: types are those of the graph as it was given."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[2,2] kept, float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> {
            s = Mul(kept, x) y = MatMul(s, w) }""")
    made = halve(model, FP16, half_inputs={"kept"}).model
    onnx.checker.check_model(made, full_check=True)
    assert types(made)["s"] == TensorProto.FLOAT
    x = np.array([[1, 2], [3, 4]], np.float32)
    found = run(made, {"kept": x, "x": x})["y"]
    np.testing.assert_array_equal(found, (x * x) @ np.array([[1, 2], [3, 4]]))
