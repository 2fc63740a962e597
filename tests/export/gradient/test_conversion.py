"""Old models keep their values when they are brought to the working opset."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from unblemish.export import differentiate

# float32 in another order of operations.
TOLERANCE = 1e-5

CONSTANTS = {
    "up": np.array([1, 1, 1.5, 2.5], np.float32), "odd": np.array([1, 1, 3, 3], np.float32),
    "zero": np.array([0, 0], np.int64), "end": np.array([1, 2], np.int64),
    "k": np.array([2], np.int64), "s": np.array([0.5, 1.5], np.float32),
    "v": np.array([1.0, 2.0], np.float32),
}  # fmt: skip


@pytest.mark.parametrize(("opset", "body"), [
    (9, 'y = Upsample<mode = "nearest">(x, up)'), (9, 'y = Upsample<mode = "nearest">(x, odd)'),
    (9, 'y = Upsample<mode = "linear">(x, up)'), (10, 'y = Resize<mode = "linear">(x, up)'),
    (10, 'y = Resize<mode = "nearest">(x, up)'), (9, "y = Softmax<axis = 2>(x)"),
    (9, "y = LogSoftmax<axis = 1>(x)"),
    (9, "y = Slice<axes = [2,3], starts = [0,1], ends = [2,-1]>(x)"),
    (10, "y = Slice(x, zero, end)"), (9, "y = Pad<pads = [0,0,1,2,0,0,0,1], value = 0.5>(x)"),
    (9, 'y = Pad<mode = "reflect", pads = [0,0,1,2,0,0,0,1]>(x)'), (9, "y, i = TopK<k = 2>(x)"),
    (10, "y, i = TopK(x, k)"), (9, "y, z = Split<axis = 3, split = [2,2]>(x)"),
    (9, "a = Unsqueeze<axes = [0]>(x) y = Squeeze<axes = [0]>(a)"),
    (9, "y = ReduceSum<axes = [1,2]>(x)"),
    (11, "y = ReduceMean<axes = [-1], keepdims = 0>(x)"), (9, "y = DepthToSpace<blocksize = 1>(x)"),
    (9, "y = BatchNormalization(x, s, s, s, v)"), (9, "y = AveragePool<kernel_shape = [2,2]>(x)"),
    (9, "y = Flatten(x)"), (9, "y = Elu(x)"), (13, "y = Dropout(x)"),
    (17, "y = ReduceMax<axes = [2]>(x)"), (12, "y = Softmax(x)"),
    (15, "y = InstanceNormalization(x, s, v)"),
])  # fmt: skip
def test_values_stay_when_converted(opset, body):
    rank = {"Flatten": 2, "keepdims = 0": 3}
    y = next((",".join("abcd"[:r]) for key, r in rank.items() if key in body), "a,b,c,d")
    proto = parser.parse_model(f"""<ir_version: 7, opset_import: ["": {opset}]>
        g (float[N,2,3,4] x) => (float[{y}] y) {{ {body} }}""")
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used
    )
    onnx.checker.check_model(proto)
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    expected = ort.InferenceSession(proto.SerializeToString()).run(["y"], {"x": x})[0]
    fused = differentiate(proto, ["x"]).fused
    feeds = {"x": x, "ct_y": np.ones_like(expected)}
    actual = ort.InferenceSession(fused.SerializeToString()).run(["y"], feeds)[0]
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
