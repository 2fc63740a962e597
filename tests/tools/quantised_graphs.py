"""A small network to be quantised, what goes into it, and how far results are apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

# 8 bits over the range of a layer's values, here some six standard deviations: a step of 5 %, an
# error of 1.4 % of the standard deviation, twice (weights, activations) and through two layers.
CLOSE = 0.06


def network(width: int = 1) -> onnx.ModelProto:
    """Four layers, inner ones `width` times as wide; two are neither first nor last."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[batch,3,9,7] x) => (float[batch,2,9,7] y) {
            a = Conv<pads = [1,1,1,1]>(x, w0, b0) b = Relu(a)
            c = Conv<pads = [1,1,1,1]>(b, w1, b1) d = Relu(c)
            e = Conv<pads = [1,1,1,1]>(d, w2, b2) f = Relu(e)
            y = Conv<pads = [1,1,1,1]>(f, w3, b3) }""")
    rng = np.random.default_rng(0)
    channels = [3, 6 * width, 5 * width, 4 * width, 2]
    for i, (before, after) in enumerate(pairwise(channels)):
        w = rng.standard_normal((after, before, 3, 3)) / np.sqrt(9 * before / 2)
        b = 0.1 * rng.standard_normal(after)
        for name, array in ((f"w{i}", w), (f"b{i}", b)):
            tensor = numpy_helper.from_array(array.astype(np.float32), name)
            model.graph.initializer.append(tensor)
    return model


def feeds(count: int = 8, seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((2, 3, 9, 7)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, given: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {value.name: given[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
