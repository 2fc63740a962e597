"""TorchGraph against ONNX Runtime, the ONNX backend node tests, and autograd's own check."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser

from unblemish.errors import ModelError, ShapeError, UnsupportedOperatorError
from unblemish.runtime.backends.torch_graph import TorchGraph
from unblemish.runtime.backends.torch_ops import OPERATORS

# float32 sums of a few hundred terms in another order.
RTOL, ATOL = 1e-3, 1e-5
# float16 keeps 11 bits.
RTOL_HALF = 1e-2

HEAD = '<ir_version: 10, opset_import: ["": 21]> '


def _model(text: str, opset: int = 21) -> onnx.ModelProto:
    return parser.parse_model(HEAD.replace("21", str(opset)) + text)


def _both(model: onnx.ModelProto, **feeds: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    graph = TorchGraph(model)
    found = graph(**{n: torch.from_numpy(v) for n, v in feeds.items()})
    return session.run(None, feeds), [found[o.name].detach().numpy() for o in graph.outputs]


FAMILIES = {
    "elementwise": "A = Abs(x) B = Pow(A, c) D = Div(B, r) E = Min(D, c, x) m = Less(x, E) "
    "y = Where(m, D, E)",
    "activation": "A = Mish(x) B = Gelu<approximate='tanh'>(A) C = HardSwish(B) y = Softplus(C)",
    "convolution": "A = ConvTranspose<strides=[2,2],pads=[1,0,0,1],output_padding=[1,0]>(x, k) "
    "y = Conv<auto_pad='SAME_LOWER',strides=[2,3],dilations=[1,1]>(A, k)",
    "pooling": "A = MaxPool<kernel_shape=[3,2],strides=[2,2],pads=[1,0,0,1],ceil_mode=1>(x) "
    "y = AveragePool<kernel_shape=[2,2],pads=[1,0,1,1],ceil_mode=1,strides=[2,2]>(A)",
    "linear": "A = MatMul(x, w) y = Einsum<equation='b...j, ij -> b...i'>(A, w)",
    "normalisation": "A = GroupNormalization<num_groups=1>(x, s, s) "
    "B = InstanceNormalization(A, s, s) C = LpNormalization<axis=1,p=1>(B) "
    "y = LayerNormalization(C, r)",
    "reduction": "A = Softmax<axis=1>(x) B = ReduceLogSumExp<keepdims=0>(A, i) "
    "y = CumSum<reverse=1>(B, j)",
    "resize": "y = Resize<mode='cubic',antialias=1>(x, , f)",
    "layout": "A = Pad<mode='reflect'>(x, p) B = Slice(A, st, en, ax, sp) y = Tile(B, rp)",
    "indexing": "A = Gather<axis=2>(x, i) B = GatherElements<axis=1>(A, g) y = ScatterND(B, nd, u)",
}
KERNEL = ", ".join(str(round(np.sin(n), 3)) for n in range(24))
INITIALISERS = f"""
    float c = {{1.3}}, float[5, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
    float[2, 2, 2, 3] k = {{{KERNEL}}},
    float[2] s = {{1.2, 0.7}}, float[5] r = {{1, 2, 3, 4, 5}}, int64[1] i = {{1}}, int64 j = {{0}},
    float[4] f = {{1, 1, 0.6, 0.7}}, int64[8] p = {{0, 0, 1, 2, 0, 0, 3, 1}},
    int64[2] st = {{-1, 0}}, int64[2] en = {{-100, 4}},
    int64[2] ax = {{2, 3}}, int64[2] sp = {{-2, 1}},
    int64[4] rp = {{1, 2, 1, 1}}, int64[1, 2, 1, 1] g = {{-1, 0}}, int64[1, 1] nd = {{0}},
    float[1, 2, 1, 1] u = {{5, 6}}
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_family_matches_onnxruntime(family: str, rng: np.random.Generator) -> None:
    body = FAMILIES[family].replace("'", '"').replace(", ,", ', "",').replace('""', "")
    model = _model(f"g (float[n, 2, 4, 5] x) => (float[] y) <{INITIALISERS}> {{ {body} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
    expected, found = _both(model, x=x)
    np.testing.assert_allclose(found[0], expected[0], rtol=RTOL, atol=ATOL)


COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
TARGETS = ("2.0, 3.0", "0.6, 0.8", "1.5, 2.3", "0.3, 0.5")


def _resize(mode: str, coordinates: str, extra: str, scales: str) -> onnx.ModelProto:
    return _model(
        "g (float[1, 2, 5, 7] x) => (float[a, b, c, d] y) "
        f"<float[8] roi = {{0, 0, 0.1, 0.2, 1, 1, 0.9, 1.15}}, "
        f"float[4] scales = {{1, 1, {scales}}}> "
        f'{{ y = Resize<mode = "{mode}", coordinate_transformation_mode = "{coordinates}", '
        f"cubic_coeff_a = -0.6, extrapolation_value = 2.5{extra}>(x, roi, scales) }}"
    )


@pytest.mark.parametrize(
    ("mode", "extra"),
    [
        ("linear", ""),
        ("linear", ", antialias = 1"),
        ("cubic", ""),
        ("cubic", ", exclude_outside = 1"),
        ("cubic", ", antialias = 1"),
        ("cubic", ", antialias = 1, exclude_outside = 1"),
    ],
)
def test_resize_matches_onnxruntime(mode: str, extra: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 2, 5, 7)).astype(np.float32)
    for coordinates, scales in product(COORDINATES, TARGETS):
        expected, found = _both(_resize(mode, coordinates, extra, scales), x=x)
        # float32 coordinates of the engine: an interpolation weight is off by 1e-6.
        np.testing.assert_allclose(
            found[0], expected[0], atol=1e-4, err_msg=f"{coordinates} {scales}"
        )


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_resize_matches_onnxruntime(rounding: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 2, 5, 7)).astype(np.float32)
    for coordinates, scales in product(COORDINATES, TARGETS):
        if (coordinates, rounding) == ("half_pixel_symmetric", "floor"):
            continue  # exact ties: which way they fall is the engine's rounding
        model = _resize("nearest", coordinates, f', nearest_mode = "{rounding}"', scales)
        expected, found = _both(model, x=x)
        np.testing.assert_array_equal(found[0], expected[0], err_msg=f"{coordinates} {scales}")


# The reference takes scale * length where the engines take the integer length of the result.
REFERENCE_DIFFERS = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
# Nothing to reduce: the neutral element is not of interest for a generator.
EMPTY = {"test_reduce_max_empty_set", "test_reduce_max_empty_set_bool", "test_reduce_min_empty_set"}
LACKING_IN_TORCH = (
    "object",
    "uint16",
    "uint32",
    "uint64",
    "bfloat16",
    "float8",
    "float4",
    "int4",
    "int2",
    "uint4",
    "uint2",
)


def _node_tests() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def _arrays(part: list[Any]) -> list[np.ndarray]:
    return [
        onnx.numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else np.asarray(a)
        for a in part
    ]


def _reason_to_skip(case: Any) -> str | None:
    known = {*OPERATORS, "Constant"}
    if case.model is None or not {n.op_type for n in case.model.graph.node} <= known:
        return "operator without implementation"
    if case.name in REFERENCE_DIFFERS | EMPTY or "training" in case.name:
        return "stated difference"
    values = [a for data in case.data_sets for part in data for a in part]
    if any(not isinstance(v, (np.ndarray, np.generic, onnx.TensorProto)) for v in values):
        return "sequence or optional"
    if any(a.dtype.name.startswith(LACKING_IN_TORCH) for a in _arrays(values)):
        return "element type without torch arithmetic"
    return None


def _run_case(case: Any) -> None:
    graph = TorchGraph(case.model)
    for given, expected in case.data_sets:
        feeds = zip(graph.inputs, _arrays(given), strict=True)
        found = graph(**{spec.name: torch.from_numpy(a.copy()) for spec, a in feeds})
        for spec, want in zip(graph.outputs, _arrays(expected), strict=True):
            value = found[spec.name].detach().numpy()
            assert value.dtype == want.dtype
            rtol, atol = (RTOL_HALF, RTOL_HALF) if want.dtype == np.float16 else (RTOL, ATOL)
            np.testing.assert_allclose(value, want, rtol=rtol, atol=atol)


def test_operators_reproduce_the_node_tests() -> None:
    outcomes: Counter[str] = Counter()
    failures = []
    for case in _node_tests():
        reason = _reason_to_skip(case)
        outcomes[reason or "run"] += 1
        try:
            if reason is None:
                _run_case(case)
        except (AssertionError, ModelError) as error:
            failures.append(f"{case.name}: {str(error).strip()[:300]}")
    assert not failures, "\n".join(failures)
    assert outcomes["run"] > 1000, outcomes


def test_listed_operators_are_covered() -> None:
    listed = """
        Add Sub Mul Div Neg Abs Pow Sqrt Reciprocal Exp Log Erf Sin Cos Tanh Sigmoid HardSigmoid
        HardSwish Relu LeakyRelu PRelu Elu Selu Celu Gelu Mish Softplus Softsign ThresholdedRelu
        Clip Min Max Where Cast Identity Dropout Conv ConvTranspose MatMul Gemm Einsum MaxPool
        AveragePool GlobalAveragePool GlobalMaxPool LpPool BatchNormalization
        InstanceNormalization LayerNormalization GroupNormalization LpNormalization ReduceSum
        ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp
        ReduceProd Softmax LogSoftmax Resize Upsample Concat Split Slice Gather GatherND
        GatherElements Pad Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile DepthToSpace
        SpaceToDepth TopK CumSum
    """
    assert set(listed.split()) <= set(OPERATORS)


def test_autograd_runs_through_every_family(rng: np.random.Generator) -> None:
    body = (
        'A = ConvTranspose<strides=[2,2]>(x, k) B = Resize<mode="linear">(A, "", f) '
        "C = GroupNormalization<num_groups=1>(B, s, s) D = Softplus(C) y = ReduceL2(D, i)"
    ).replace('""', "")
    model = _model(
        f"g (float[1, 2, 3, 3] x) => (float[a, b, c, d] y) <{INITIALISERS}> {{ {body} }}"
    )
    graph = TorchGraph(model, dtype=torch.float64)
    x = torch.from_numpy(rng.normal(size=(1, 2, 3, 3))).requires_grad_()
    weights = list(graph.weights.values())
    assert torch.autograd.gradcheck(lambda x, *_: graph(x=x)["y"], (x, *weights))


SMALL = (
    "g (float[batch, 3] z) => (float[batch, 2] y) "
    "<float[3, 2] w = {1, 2, 3, 4, 5, 6}, float gain = {0.5}, float low = {-1.0}> "
    '{ a = MatMul(z, w) b = Mul(a, gain) y = Clip(b, low, "") }'
).replace(', "")', ")")


def test_initialisers_become_parameters_and_settings_buffers() -> None:
    graph = TorchGraph(_model(SMALL))
    assert set(graph.weights) == {"w"}
    graph(z=torch.ones(4, 3))["y"].sum().backward()
    np.testing.assert_allclose(graph.weights["w"].grad, np.full((3, 2), 4 * 0.5))


def test_path_and_bytes_and_model_agree(tmp_path: Path) -> None:
    model = _model(SMALL)
    path = tmp_path / "g.onnx"
    onnx.save(model, path)
    z = torch.ones(2, 3)
    results = [TorchGraph(s)(z=z)["y"] for s in (model, model.SerializeToString(), path, str(path))]
    assert all(torch.equal(r, results[0]) for r in results)


def test_dtype_replaces_casts_of_the_graph() -> None:
    model = _model("g (float[2] x) => (float[2] y) { y = Cast<to = 1>(x) }")
    assert TorchGraph(model, dtype=torch.float64)(x=torch.ones(2))["y"].dtype == torch.float64


@pytest.mark.parametrize(("x", "expected"), [(2.0, 5.0), (-2.0, -1.0)])
def test_if_runs_the_branch_taken(x: float, expected: float) -> None:
    model = _model(
        "g (float x) => (float y) { zero = Constant<value = float {0.0}>() c = Greater(x, zero) "
        "y = If(c) <then_branch = t () => (float a) { three = Constant<value = float {3.0}>() "
        "a = Add(x, three) }, else_branch = e () => (float b) { "
        "one = Constant<value = float {1.0}>() b = Add(x, one) }> }"
    )
    assert float(TorchGraph(model)(x=torch.tensor(x))["y"]) == expected


def test_local_functions_are_inlined() -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "local": 1]> '
        "g (float[2] x) => (float[2] y) { y = local.twice(x) } "
        '<domain: "local", opset_import: ["": 21]> twice (a) => (b) { b = Add(a, a) }'
    )
    assert TorchGraph(model)(x=torch.ones(2))["y"].tolist() == [2.0, 2.0]


def test_unsupported_operator_is_named() -> None:
    model = _model("g (float[2] x) => (float[2] y) { [odd] y = Bernoulli(x) }")
    with pytest.raises(UnsupportedOperatorError, match=r"'odd' \(Bernoulli, opset 21\)"):
        TorchGraph(model)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"takes the inputs \['z'\], found \[\]"),
        ({"z": torch.ones(3)}, r"'z' has shape \(3,\)"),
        ({"z": torch.ones(2, 4)}, r"'z' has shape \(2, 4\), the graph states \('batch', 3\)"),
    ],
)
def test_wrong_feeds_are_refused(feeds: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        TorchGraph(_model(SMALL))(**feeds)


def test_unreadable_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="cannot read the ONNX model"):
        TorchGraph(path)
