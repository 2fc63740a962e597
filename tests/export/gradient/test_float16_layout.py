"""float16 models of reductions, layout, indexing and Resize agree with their float32 twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, parser

from unblemish.export import differentiate

# float16 keeps eleven bits; sums of a few dozen products stay within 2e-2 of the largest value.
TOLERANCE = 2e-2

CONSTANTS = {
    "one": "int64[1] one = {1}", "two": "int64[2] two = {2, 3}", "axis": "int64 axis = {2}",
    "pads": "int64[8] pads = {0, 0, 1, 2, 0, 0, 3, 0}", "start": "int64[1] start = {-1}",
    "end": "int64[1] end = {-100}", "back": "int64[1] back = {-2}", "k": "int64[1] k = {3}",
    "last": "int64[1] last = {3}", "shape": "int64[2] shape = {0, -1}",
    "times": "int64[4] times = {1, 2, 1, 3}", "index": "int64[4] index = {0, 3, 3, 1}",
    "zeros": "int64[3] zeros = {0, 1, 0}", "places": "int64[1, 2, 1, 2] places = {0, 3, 0, 1}",
    "scales": "float[4] scales = {1, 1, 2, 1.5}", "factors": "float[4] factors = {1, 1, 2, 2}",
}  # fmt: skip
BODIES = [
    *(f"a = Mul(x, x) y = {op}<keepdims = 0>(a, two)" for op in (
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd")),
    "a = Exp(x) y = ReduceMax(a, one)",
    "a = Softmax<axis = 1>(x) y = LogSoftmax<axis = -1>(a)",
    "a = Mul(x, x) y, i = TopK<axis = 2>(a, k)",
    "a = Mul(x, x) y = Slice(a, start, end, last, back)",
    *(f'a = Mul(x, x) y = Pad<mode = "{mode}">(a, pads)' for mode in (
        "constant", "reflect", "edge", "wrap")),
    "a = Tile(x, times) b = Mul(a, a) y = Reshape(b, shape)",
    "a = Gather<axis = 3>(x, index) y = Mul(a, a)",
    "a = Gather<axis = 0>(x, zeros) y = Mul(a, a)",
    "a = GatherElements<axis = 1>(x, places) y = Mul(a, a)",
    "a = DepthToSpace<blocksize = 2, mode = 'CRD'>(x) y = Mul(a, a)",
    "a = Resize<mode = 'cubic'>(x, , scales) y = Mul(a, a)",
    "a = Resize<mode = 'nearest'>(x, , factors) y = Mul(a, a)",
]  # fmt: skip


def model(body: str) -> onnx.ModelProto:
    names = set(body.replace(",", " ").replace(")", " ").replace("(", " ").split())
    held = ", ".join(text for name, text in CONSTANTS.items() if name in names)
    body = body.replace("'", '"')
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 4, 6, 6] x) => (float[] y) '
        f"<{held}> {{ {body} }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    half = onnx.ModelProto()
    half.CopyFrom(proto)
    del half.graph.value_info[:]
    for info in (*half.graph.input, *half.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


@pytest.mark.parametrize("body", BODIES)
def test_float16_gradient_agrees_with_float32(body: str, rng: np.random.Generator) -> None:
    wide = model(body)
    x = rng.standard_normal((2, 4, 6, 6)).astype(np.float16)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3

    def run(proto: onnx.ModelProto, feeds: dict[str, Any], output: str) -> np.ndarray:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        half = {i.name: i.type == "tensor(float16)" for i in session.get_inputs()}
        given = {n: a.astype(np.float16 if half[n] else np.float32) for n, a in feeds.items()}
        result: np.ndarray = session.run([output], given)[0]
        return result

    shape = run(wide, {"x": x}, "y").shape
    feeds = {"x": x, "ct_y": rng.standard_normal(shape).astype(np.float16)}
    expected, found = (
        run(differentiate(proto, ["x"]).fused, feeds, "grad_x") for proto in (wide, halved(wide))
    )
    assert found.dtype == np.float16
    atol = TOLERANCE * float(abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=atol, rtol=TOLERANCE)
