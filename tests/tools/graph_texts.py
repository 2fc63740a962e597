"""Small models written as ONNX text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
CHAIN = f"""{HEAD} g (float[N,2,9,9] x) => (float[N,3,9,9] y) <float[3,2,3,3] w, float[3] b>
    {{ a = Conv<pads = [1,1,1,1]>(x, w, b) r = Relu(a) y = Tanh(r) }}"""


def chain() -> onnx.ModelProto:
    """Conv, Relu, Tanh with fixed random weights."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(CHAIN.replace(" <float[3,2,3,3] w, float[3] b>", ""))
    for name, shape in {"w": (3, 2, 3, 3), "b": (3,)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def parse(
    body: str, x: str = "float[3] x", y: str = "float[3] y", opset: int = 21
) -> onnx.ModelProto:
    head = f'<ir_version: {8 if opset < 19 else 10}, opset_import: ["": {opset}]>'
    return parser.parse_model(f"{head} g ({x}) => ({y}) {{ {body} }}")
