"""float16 models: gradients are float16 and agree with those of the float32 model."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from unblemish.export import differentiate

# float16 keeps eleven bits, 2⁻¹¹ ≈ 5e-4; sums of a few dozen products of it stay within 2e-2 of the
# largest value.
TOLERANCE = 2e-2

CONSTANTS = {
    "w": (4, 4, 3, 3), "d": (4, 1, 3, 3), "m": (6, 6), "s": (4,), "b": (4,), "v": (4,), "l": (6,),
    "p": (4, 1, 1),
}  # fmt: skip
BODIES = [
    "a = Mul(x, x) c = Add(a, x) e = Neg(c) y = Tanh(e)",
    "a = Abs(x) c = Sqrt(a) e = Exp(c) y = Div(x, e)",
    "a = Relu(x) c = LeakyRelu(a) e = PRelu(c, p) y = Sub(e, x)",
    "a = Elu(x) c = Selu(a) e = Softplus(c) y = Sigmoid(e)",
    "a = HardSigmoid(x) c = HardSwish(x) y = Max(a, c)",
    "a = Gelu(x) c = Mish(x) e = Softsign(a) y = Min(c, e)",
    "y = Conv<pads = [1,1,1,1]>(x, w)",
    "y = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w)",
    "y = Conv<pads = [1,1,1,1], group = 4>(x, d)",
    "y = ConvTranspose<strides = [2,2]>(x, w)",
    "a = MatMul(x, m) y = Erf(a)",
    "y = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)",
    "y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)",
    "a = GlobalAveragePool(x) c = GlobalMaxPool(x) y = Mul(a, c)",
    "y = BatchNormalization(x, s, b, b, v)",
    "y = InstanceNormalization(x, s, b)",
    "y = LayerNormalization(x, l)",
    "y = GroupNormalization<num_groups = 2>(x, s, b)",
    "y = LpNormalization<axis = 1>(x)",
    "a = Cast<to = 1>(x) c = Sin(a) y = Mul(c, c)",
]


def model(body: str) -> onnx.ModelProto:
    text = f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[N,4,6,6] x) => (float[n,c,h,k] y) {{ {body} }}"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(1)
    used = {name for node in proto.graph.node for name in node.input}
    for name, shape in CONSTANTS.items():
        if name in used:
            array = rng.uniform(0.1, 0.6, shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def halved(proto: onnx.ModelProto, body: str) -> onnx.ModelProto:
    half = onnx.ModelProto()
    half.CopyFrom(proto)
    for tensor in half.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    # A body that casts to float32 has a float32 output.
    infos = half.graph.input if "Cast" in body else [*half.graph.input, *half.graph.output]
    for info in infos:
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


@pytest.mark.parametrize("body", BODIES)
def test_float16_gradient_agrees_with_float32(body):
    wide = model(body)
    half = halved(wide, body)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float16)
    y = ort.InferenceSession(wide.SerializeToString()).run(None, {"x": x.astype(np.float32)})[0]
    ct = np.random.default_rng(2).standard_normal(y.shape).astype(np.float16)
    grads = {}
    for name, proto in {"wide": wide, "half": half}.items():
        session = ort.InferenceSession(differentiate(proto, ["x"]).fused.SerializeToString())
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        dtypes = {i.name: kinds[i.type] for i in session.get_inputs()}
        feeds = {n: a.astype(dtypes[n]) for n, a in {"x": x, "ct_y": ct}.items()}
        grads[name] = session.run(["grad_x"], feeds)[0]
    assert grads["half"].dtype == np.float16
    scale = abs(grads["wide"]).max()
    np.testing.assert_allclose(grads["half"], grads["wide"], atol=TOLERANCE * scale, rtol=TOLERANCE)
