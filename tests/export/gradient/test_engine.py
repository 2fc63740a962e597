"""The engine as a whole: names, inputs of every kind, partition, report."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from graph_texts import chain, parse
from onnx import TensorProto, helper, numpy_helper, parser

from unblemish.export import differentiate


def names(infos) -> list[str]:
    return [i.name for i in infos]


def test_graphs_have_the_documented_inputs_and_outputs():
    result = differentiate(chain(), wrt=["x"])
    fused, forward, backward = result.fused.graph, result.forward.graph, result.backward.graph
    kept = result.report.kept
    assert names(fused.input) == ["x", "ct_y"]
    assert names(fused.output) == ["y", "grad_x"]
    assert names(forward.input) == ["x"]
    assert names(forward.output) == ["y", *(t.name for t in kept if t.source == "forward")]
    assert names(backward.input) == [*(t.name for t in kept), "ct_y"]
    assert names(backward.output) == ["grad_x"]


def test_model_given_is_not_changed():
    model = chain()
    before = model.SerializeToString(deterministic=True)
    differentiate(model, wrt=["x"])
    assert model.SerializeToString(deterministic=True) == before


def test_path_and_external_data_are_read(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save_model(
        chain(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    read, given = (
        differentiate(path, wrt=["x"]).fused.graph,
        differentiate(chain(), wrt=["x"]).fused.graph,
    )
    assert list(read.node) == list(given.node)
    for one, other in zip(read.initializer, given.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_same_model_gives_the_same_bytes():
    first, second = (differentiate(chain(), wrt=["x", "w"]) for _ in range(2))
    for name in ("forward", "backward", "fused"):
        one, other = (
            getattr(r, name).SerializeToString(deterministic=True) for r in (first, second)
        )
        assert one == other


def test_relu_keeps_a_mask_of_one_byte_an_element():
    body = "a = Conv(x, w) r = Relu(a) y = Conv(r, w)"
    model = parse(body, "float[1,1,8,8] x", "float[1,1,4,4] y")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 3, 3), "f"), "w"))
    kept = differentiate(model, wrt=["x"]).report.kept
    assert [(t.dtype, t.shape, t.bytes, t.source) for t in kept] == [
        ("bool", (1, 1, 6, 6), 36, "forward")
    ]


def test_cheap_values_are_computed_again_instead_of_kept():
    model = parse("a = Exp(x) b = Mul(a, k) c = Mul(b, k) y = Exp(c)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], "f"), "k"))
    report = differentiate(model, wrt=["x"]).report
    # e^c is the output and a = e^x follows from the input: both buffers exist anyway.
    assert {t.source for t in report.kept} <= {"input", "output"}
    assert report.kept_bytes == 0


def test_convolutions_are_never_computed_again():
    result = differentiate(chain(), wrt=["x"])
    assert Counter(n.op_type for n in result.backward.graph.node)["Conv"] == 1
    assert Counter(n.op_type for n in result.fused.graph.node)["Conv"] == 2


def test_report_counts_nodes_and_describes_itself():
    result = differentiate(chain(), wrt=["x"])
    assert result.report.nodes == {
        "original": 3,
        "forward": len(result.forward.graph.node),
        "backward": len(result.backward.graph.node),
        "fused": len(result.fused.graph.node),
    }
    assert "kept for the way back" in str(result.report)


def test_weights_become_inputs_with_defaults_when_differentiated(check_gradients):
    def function(x, w, b):
        return torch.tanh(F.relu(F.conv2d(x, w, b, padding=1)))

    result = check_gradients(chain(), function, wrt=["x", "w", "b"], sizes={"N": 2})
    for graph in (result.forward.graph, result.fused.graph):
        assert {"w", "b"} <= set(names(graph.input))
        assert {"w", "b"} <= {t.name for t in graph.initializer}


def test_forward_uses_the_default_weights_when_they_are_not_fed():
    result = differentiate(chain(), wrt=["w"])
    x = np.random.default_rng(1).standard_normal((2, 2, 9, 9)).astype(np.float32)
    plain = ort.InferenceSession(chain().SerializeToString()).run(["y"], {"x": x})[0]
    session = ort.InferenceSession(result.forward.SerializeToString())
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], plain, rtol=1e-6, atol=1e-6)
    zero = session.run(["y"], {"x": x, "w": np.zeros((3, 2, 3, 3), np.float32)})[0]
    assert abs(zero - plain).max() > 0.1


def test_gradient_is_zero_where_no_path_leads(check_gradients):
    model = parse("y = Mul(x, x) i = Floor(z) k = Add(i, i)", "float[3] x, float[N,2] z",
                  "float[3] y, float[N,2] k")  # fmt: skip
    check_gradients(
        model,
        lambda x, z: (x * x, z.floor() * 2),
        wrt=["x", "z"],
        sizes={"N": 4},
        differences=False,
    )


def test_gradients_of_several_outputs_are_summed(check_gradients):
    model = parse("a = Sin(x) b = Mul(a, x) c = Add(a, b)", y="float[3] a, float[3] b, float[3] c")

    def function(x):
        a = torch.sin(x)
        return a, a * x, a + a * x

    check_gradients(model, function)


def test_only_the_outputs_named_are_differentiated(check_gradients):
    model = parse("a = Sin(x) b = Exp(x)", y="float[3] a, float[3] b")
    result = check_gradients(model, lambda x: torch.exp(x), outputs=["b"])
    assert names(result.fused.graph.input) == ["x", "ct_b"]
    assert names(result.fused.graph.output) == ["a", "b", "grad_x"]
    assert all(n.op_type != "Cos" for n in result.fused.graph.node)


def test_an_input_used_many_times_gets_one_sum(check_gradients):
    result = check_gradients(
        parse("a = Mul(x, x) b = Sin(x) c = Exp(x) y = Sum(a, b, c, x)"),
        lambda x: x * x + x.sin() + x.exp() + x,
    )
    assert Counter(n.op_type for n in result.backward.graph.node)["Sum"] == 1


def test_equal_and_dead_nodes_of_the_model_are_dropped(check_gradients):
    model = parse(
        "a = Sin(x) b = Sin(x) dead = Exp(x) s = Shape(a) c = Mul(a, b) y = Reshape(c, s)"
    )
    result = check_gradients(model, lambda x: x.sin() ** 2)
    used = Counter(n.op_type for n in result.fused.graph.node)
    assert (used["Sin"], used["Exp"], used["Shape"]) == (1, 0, 0)


def test_new_names_never_collide_with_the_models():
    model = parse("mul_g0 = Mul(x, x) where_g0 = Relu(mul_g0) constant_g0 = Exp(where_g0) "
                  "y = Mul(constant_g0, x)")  # fmt: skip
    fused = differentiate(model).fused
    produced = [name for n in fused.graph.node for name in n.output]
    assert len(produced) == len(set(produced))
    nodes = [n.name for n in fused.graph.node]
    assert len(nodes) == len(set(nodes))
    x, ct = np.array([1, -2, 0.5], "f"), np.ones(3, "f")
    y, grad = ort.InferenceSession(fused.SerializeToString()).run(None, {"x": x, "ct_y": ct})
    np.testing.assert_allclose(y, np.exp(x * x) * x, rtol=1e-6)
    np.testing.assert_allclose(grad, np.exp(x * x) * (1 + 2 * x * x), rtol=1e-6)


def test_model_local_functions_are_inlined(check_gradients):
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[3] x) => (float[3] y) { a = local.squash<k = 2.0>(x) y = local.squash<k = 0.5>(a) }
        <domain: "local", opset_import: ["": 21]> squash <k> (v) => (w)
        { c = Constant<value_float : float = @k>() t = Tanh(v) w = Mul(t, c) }""")
    result = check_gradients(
        model, lambda x: 0.5 * torch.tanh(2 * torch.tanh(x)), differences=False
    )
    assert not result.fused.functions


def test_initialisers_listed_as_inputs_count_as_constants():
    model = chain()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2, 3, 3]))
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]))
    assert names(differentiate(model).fused.graph.input) == ["x", "ct_y"]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20, 21, 22, 23])
def test_models_of_every_opset_give_the_same_gradient(opset):
    sizes = {"x": (2, 2, 9, 7)}
    body = """p = MaxPool<kernel_shape = [3,3], strides = [2,2]>(x)
      n = BatchNormalization(p, s, b, m, v) e = Elu(n) c = Conv<pads = [1,1,1,1]>(e, w)
      d = Dropout(c) t = ConvTranspose<strides = [2,2]>(d, w)
      l = LeakyRelu(t) q = Mul(l, l) y = Add(q, b0)"""
    model = parse(body, "float[N,2,9,7] x", "float[N,2,h,v2] y", opset)
    rng = np.random.default_rng(5)
    for name, shape in {"s": 2, "b": 2, "m": 2, "v": 2, "w": (2, 2, 3, 3), "b0": 1}.items():
        array = rng.uniform(0.5, 1, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    x = rng.standard_normal(sizes["x"]).astype(np.float32)
    w = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    leaf = torch.tensor(x, requires_grad=True)
    n = F.batch_norm(F.max_pool2d(leaf, 3, 2), w["m"], w["v"], w["s"], w["b"])
    t = F.leaky_relu(F.conv_transpose2d(F.conv2d(F.elu(n), w["w"], padding=1), w["w"], stride=2))
    expected = t * t + w["b0"]
    ct = rng.standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.tensor(ct))
    fused = differentiate(model).fused
    assert fused.opset_import[0].version == 21
    y, grad = ort.InferenceSession(fused.SerializeToString()).run(None, {"x": x, "ct_y": ct})
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("opset", "body"), [
    (9, "y = Clip<min = -0.3, max = 0.4>(x)"), (10, "y = Clip<max = 0.4>(x)"),
    (9, "y = PRelu(x, a)"), (9, "y = Dropout<ratio = 0.5>(x)"), (9, "y = Gemm(x, a, b)"),
    (10, "y = ThresholdedRelu<alpha = 0.3>(x)"), (11, "y = Dropout(x)"), (9, "y = Max(x, a)"),
])  # fmt: skip
def test_old_forms_of_operators_are_converted(opset, body):
    model = parse(body, "float[3,3] x", "float[3,3] y", opset)
    for name in ("a", "b"):
        if f" {name}" in body.split("(")[1]:
            array = np.random.default_rng(2).standard_normal((3, 3)).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    result = differentiate(model)
    x = np.random.default_rng(3).standard_normal((3, 3)).astype(np.float32)
    plain = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    fused = ort.InferenceSession(result.fused.SerializeToString())
    y, grad = fused.run(None, {"x": x, "ct_y": np.ones((3, 3), "f")})
    np.testing.assert_allclose(y, plain, rtol=1e-6)
    ahead = fused.run(["y"], {"x": x + np.float32(1e-3), "ct_y": np.ones((3, 3), "f")})[0]
    # float32 central values: 1e-7 / 1e-3 of rounding.
    np.testing.assert_allclose(grad.sum(), (ahead - plain).sum() / 1e-3, atol=5e-3)


def test_float16_models_give_float16_gradients():
    rng = np.random.default_rng(0)
    model = chain()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for info in [*model.graph.input, *model.graph.output]:
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = differentiate(model, wrt=["x", "w"])
    x = rng.standard_normal((2, 2, 9, 9)).astype(np.float16)
    ct = rng.standard_normal((2, 3, 9, 9)).astype(np.float16)
    session = ort.InferenceSession(result.fused.SerializeToString())
    outputs = session.run(None, {"x": x, "ct_y": ct})
    assert all(o.dtype == np.float16 for o in outputs)
    wide = ort.InferenceSession(differentiate(chain(), wrt=["x", "w"]).fused.SerializeToString())
    expected = wide.run(None, {"x": x.astype("f"), "ct_y": ct.astype("f")})
    for actual, target in zip(outputs, expected, strict=True):
        # float16 keeps eleven bits; the kernel's gradient sums 162 products.
        np.testing.assert_allclose(actual, target, rtol=2e-2, atol=2e-2 * abs(target).max())


def test_one_dimension_of_everything_may_be_symbolic(check_gradients):
    model = parse("a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w) s = Sigmoid(a) "
                  "y = GlobalAveragePool(s)",
                  "float[N,2,H,W] x, float[4,2,3,3] w", "float[N,4,1,1] y")  # fmt: skip

    def function(x, w):
        return torch.sigmoid(F.conv2d(x, w, padding=1, stride=2)).mean((2, 3), keepdim=True)

    for size in ({"N": 1, "H": 9, "W": 6}, {"N": 3, "H": 1, "W": 19}):
        check_gradients(model, function, sizes=size)


def test_the_gradient_of_the_gradient_gives_products_with_the_jacobian():
    """`fused` is linear in its cotangent c: with g = Jᵀ c, the gradient of ⟨v, g⟩ by c is J v."""
    first = differentiate(chain(), wrt=["x"]).fused
    second = differentiate(first, wrt=["ct_y"], outputs=["grad_x"]).fused
    rng = np.random.default_rng(4)
    x, v = rng.standard_normal((2, 2, 2, 9, 9)).astype(np.float32)
    feeds = {"x": x, "ct_grad_x": v, "ct_y": np.zeros((2, 3, 9, 9), np.float32)}
    found = ort.InferenceSession(second.SerializeToString()).run(["grad_ct_y"], feeds)[0]
    w, b = (torch.tensor(numpy_helper.to_array(t)) for t in chain().graph.initializer)

    def function(x):
        return torch.tanh(F.relu(F.conv2d(x, w, b, padding=1)))

    _, expected = torch.func.jvp(function, (torch.tensor(x),), (torch.tensor(v),))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_outputs_that_repeat_inputs_and_constants_pass_through(check_gradients):
    model = parse("y = Identity(x) z = Mul(x, x) k = Constant<value_float = 2.0>() q = Mul(z, k)",
                  y="float[3] y, float[3] z, float k, float[3] q")  # fmt: skip

    def function(x):
        return x.clone(), x * x, torch.tensor(2.0, requires_grad=True), 2 * x * x

    # A Constant of a plain float is float32: there is no float64 form of this model.
    check_gradients(model, function, differences=False)


def test_importing_the_room_does_not_import_onnx():
    code = "import unblemish.export, sys; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_values_whose_names_look_like_cotangents_are_kept(check_gradients):
    model = parse("ct_a = Exp(x) s = Sin(ct_a) y = Exp(s)")
    check_gradients(model, lambda x: torch.exp(torch.sin(torch.exp(x))), wrt=["x"])
