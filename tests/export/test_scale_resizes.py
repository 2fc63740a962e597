"""Resizes that state scales: same numbers, and a batch that shape inference still knows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from unblemish.export.scale_resizes import infer_resized, scale_resizes

HEADER = '<ir_version: 9, opset_import: ["": 20]>\n'


def resize(sizes: str, attributes: str = "", start: int = 0, end: int = 2) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""{HEADER}g (float[batch,2,4,6] x) => (float[b,c,h,w] y) {{
        kept = Shape<start = {start}, end = {end}>(x)
        more = Constant<value_ints = [{sizes}]>()
        all = Concat<axis = 0>(kept, more)
        lifted = Identity(all)
        y = Resize<mode = "linear" {attributes}>(x, , , all)
        }}"""
    )


def lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants as initialisers, as the passes leave them."""
    from unblemish.export.gradient.normalise import _lift_constants

    _lift_constants(model.graph)
    return model


@pytest.mark.parametrize("sizes", ["8,12", "4,6", "12,3", "7,13"])
def test_sizes_become_scales_that_give_the_same(sizes: str, rng: np.random.Generator) -> None:
    model = lifted(resize(sizes))
    scaled = scale_resizes(model)
    (node,) = [n for n in scaled.graph.node if n.op_type == "Resize"]
    x = rng.standard_normal((3, 2, 4, 6)).astype(np.float32)
    (want,), (found,) = (ReferenceEvaluator(m).run(None, {"x": x}) for m in (model, scaled))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    if len(node.input) == 3:  # 7 / 4 and 13 / 6 may round so that scales would give another size
        inferred = infer_resized(scaled, strict=True)
        shapes = {v.name: v.type.tensor_type.shape.dim for v in inferred.graph.output}
        assert shapes["y"][0].dim_param in ("batch", "b")
    assert len(model.graph.node[-1].input) == 4  # the one given is left alone


def test_whole_multiples_are_always_turned() -> None:
    scaled = scale_resizes(lifted(resize("8,12")))
    assert len(scaled.graph.node[-1].input) == 3


@pytest.mark.parametrize(
    ("attributes", "start", "end"),
    [(', keep_aspect_ratio_policy = "not_larger"', 0, 2), ("", 1, 3), ("", 0, 1)],
)
def test_other_sizes_are_left_alone(attributes: str, start: int, end: int) -> None:
    scaled = scale_resizes(lifted(resize("8,12", attributes, start, end)))
    assert len(scaled.graph.node[-1].input) == 4


def test_batch_is_known_behind_several_resizes() -> None:
    model = onnx.parser.parse_model(
        f"""{HEADER}g (float[batch,2,4,6] x, float[batch,2,16,24] z) => (y)
        <float[4] s = {{1, 1, 2, 2}}> {{
        a = Resize(x, , s)
        b = Relu(a)
        c = Resize(b, , s)
        y = Add(c, z)
        }}"""
    )
    inferred = infer_resized(model, strict=True)
    dims = {v.name: v.type.tensor_type.shape.dim for v in inferred.graph.value_info}
    assert [dims[name][0].dim_param for name in "abc"] == ["batch"] * 3
    (out,) = inferred.graph.output
    assert out.type.tensor_type.shape.dim[0].dim_param == "batch"
