"""A batch is left open where a graph does not depend on it, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from unblemish.export import differentiate
from unblemish.export.engines.fix_sizes import fix_pair, fix_sizes
from unblemish.export.engines.open_batch import BATCHES, open_batch
from unblemish.export.engines.operator_support import check_operators

# A strided and padded extractor with pooling and nearest enlargement; its gradient asks for shapes.
FEATURES = """<ir_version: 9, opset_import: ["": 20]>
g (float[batch,2,h,w] image) => (float[batch,u,v,6] features) {
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(image, K)
    r = Relu(c)
    p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(r)
    e = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric",
        nearest_mode = "floor">(p, , scales)
    j = Concat<axis = 1>(r, e)
    features = Transpose<perm = [0, 2, 3, 1]>(j)
}"""


def extractor() -> onnx.ModelProto:
    model = onnx.parser.parse_model(FEATURES)
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32)
    scales = np.array([1, 1, 2, 2], np.float32)
    for name, value in (("K", kernel), ("scales", scales)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    values = session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()})
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_opened_pair_gives_the_gradient_of_any_batch(height: int, width: int) -> None:
    made = differentiate(extractor(), wrt=["image"], outputs=["features"])
    ways = [fix_pair(made.forward, made.backward, {"batch": n, "h": height, "w": width})
            for n in BATCHES]  # fmt: skip
    opened = [open_batch(*pair) for pair in zip(*ways, strict=True)]
    (there, fed), (back, _) = (one for one in opened if one is not None)
    assert fed == {"image": (1, 2, height, width)}
    for model in (there, back):
        onnx.checker.check_model(model, full_check=True)
        check_operators(model, "features", [(10, 16), (11, 4)])
        assert "Shape" not in {node.op_type for node in model.graph.node}
    rng = np.random.default_rng(1)
    for batch in (1, 2, 5):
        image = rng.standard_normal((batch, 2, height, width)).astype(np.float32)
        want, found = run(made.forward, {"image": image}), run(there, {"image": image})
        np.testing.assert_allclose(found["features"], want["features"], atol=1e-5)
        cotangent = {"ct_features": rng.standard_normal(want["features"].shape).astype(np.float32)}
        exact = run(made.backward, {"image": image, **want, **cotangent})["grad_image"]
        gradient = run(back, {"image": image, **found, **cotangent})["grad_image"]
        np.testing.assert_allclose(gradient, exact, atol=1e-5)


def of_batches(text: str) -> Any:
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]>\ng ' + text)
    return open_batch(*(fix_sizes(model, {"batch": n}) for n in BATCHES))


def test_graph_that_computes_with_its_batch_is_not_opened() -> None:
    text = """(float[batch,3] x) => (float[batch,3] y) {
        s = Shape<start = 0, end = 1>(x) f = Cast<to = 1>(s) y = Div(x, f) }"""
    assert of_batches(text) is None


def test_output_that_does_not_follow_the_batch_stays_as_it_is() -> None:
    text = """(float[batch,3] x) => (float[1,3] y) { y = ReduceMax<keepdims = 1>(x, axes) }"""
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]>\ng ' + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axes"))
    opened = open_batch(*(fix_sizes(model, {"batch": n}) for n in BATCHES))
    assert opened is not None
    dims = [d.dim_value for d in opened[0].graph.output[0].type.tensor_type.shape.dim]
    assert dims == [1, 3]
    assert opened[1] == {"x": (1, 3)}


def test_lengths_in_proportion_to_the_batch_have_a_name_of_their_own() -> None:
    text = """(float[batch,4,3] x) => (float[cells,3] y) <int64[2] s = {-1, 3}> {
        y = Reshape(x, s) }"""
    opened = of_batches(text)
    assert opened is not None
    names = [value.type.tensor_type.shape.dim[0].dim_param
             for value in (*opened[0].graph.input, *opened[0].graph.output)]  # fmt: skip
    assert names == ["batch", "batch_4"]
