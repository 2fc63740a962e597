"""One suite for every engine family: the same graphs, the same answers, the same refusals."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.errors import BackendError, ConfigError, MissingDependencyError, ShapeError
from unblemish.runtime.backends import BACKENDS, CHAIN, Backend, open_backend
from unblemish.runtime.backends.choose import obstacle_of
from unblemish.runtime.backends.ort_device import OrtDeviceBackend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")

# Sums of 4 products of float32 numbers of order 1, in any order of summation.
TOLERANCE = 1e-6
# 3x3x2 products and three layers: rounding of 18-term sums, carried through.
CONV_TOLERANCE = 1e-5

HEADER = '<ir_version: 9, opset_import: ["": 17]>\n'
W = np.array(
    [[1.0, -2.0, 0.5], [0.25, 1.5, -1.0], [-0.75, 0.1, 2.0], [1.25, -0.5, 0.3]], np.float32
)
WEIGHT = "<float[4,3] W = {1, -2, 0.5, 0.25, 1.5, -1, -0.75, 0.1, 2, 1.25, -0.5, 0.3}>"
TANH = f"g (float[batch,4] x) => (float[batch,3] y) {WEIGHT} {{ h = MatMul(x, W) y = Tanh(h) }}"
# The forward graph keeps a boolean mask and its own output; `norm` is an output without cotangent.
FORWARD = f"""g (float[batch,4] x) => (float[batch,3] y, float[batch] norm, bool[batch,3] kept)
    {WEIGHT} {{
    h = MatMul(x, W)
    zero = Constant<value = float {{0}}>()
    kept = Greater(h, zero)
    r = Where(kept, h, zero)
    y = Tanh(r)
    square = Mul(y, y)
    axes = Constant<value_ints = [1]>()
    norm = ReduceSum<keepdims = 0>(square, axes)
}}"""
BACKWARD = f"""g (bool[batch,3] kept, float[batch,3] y, float[batch,3] ct_y)
    => (float[batch,4] grad_x)
    {WEIGHT} {{
    zero = Constant<value = float {{0}}>()
    one = Constant<value = float {{1}}>()
    square = Mul(y, y)
    slope = Sub(one, square)
    g = Mul(ct_y, slope)
    masked = Where(kept, g, zero)
    Wt = Transpose<perm = [1, 0]>(W)
    grad_x = MatMul(masked, Wt)
}}"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph given as ONNX text; returns its path."""

    def to_file(text: str) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        onnx.save(onnx.parser.parse_model(HEADER + text), str(path))
        return str(path)

    return to_file


@pytest.fixture(params=("onnxruntime", "openvino", "ort-cpu"))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each installed engine family made for inspection, on one thread."""
    return installed(request.param)


# TensorRT runs the engines of a bundle alone: test_tensorrt.py.
@pytest.fixture(
    params=[
        name
        for name in BACKENDS
        if name != "tensorrt" and (name not in CHAIN or obstacle_of(name) is None)
    ]
)
def any_backend(request: pytest.FixtureRequest) -> Backend:
    """As `backend`, and the one for fine-tuning."""
    return installed(request.param)


def installed(name: str) -> Backend:
    if name == "ort-cpu":
        return OrtDeviceBackend(name, threads=1)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return open_backend(name, threads=1)


def latents(rng: np.random.Generator, batch: int) -> NDArray[np.float32]:
    return rng.standard_normal((batch, 4)).astype(np.float32)


def gradient(x: NDArray[np.float32], ct: NDArray[np.float32]) -> NDArray[np.float64]:
    """Closed form of d sum(ct tanh(relu(x W))) / dx."""
    h = x.astype(np.float64) @ W
    return (ct * (1 - np.tanh(np.maximum(h, 0)) ** 2) * (h > 0)) @ W.T.astype(np.float64)


def test_program_states_its_interface(any_backend: Backend, write: Write) -> None:
    program = any_backend.program(write(TANH))
    (x,), (y,) = program.inputs, program.outputs
    assert (x.name, x.shape[1], x.dtype) == ("x", 4, np.dtype(np.float32))
    assert (y.name, y.shape[1], y.dtype) == ("y", 3, np.dtype(np.float32))
    assert isinstance(x.shape[0], str)
    assert isinstance(y.shape[0], str)


def test_program_follows_changing_batch_sizes(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    program = any_backend.program(write(TANH))
    for batch in (1, 3, 19, 2, 1, 19, 99, 1):
        x = latents(rng, batch)
        y = program.run({"x": x})["y"]
        assert y.shape == (batch, 3)
        np.testing.assert_allclose(y, np.tanh(x @ W), atol=TOLERANCE)


def test_program_reads_the_array_again_when_its_content_changes(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    program = any_backend.program(write(TANH))
    x = latents(rng, 2)
    for _ in range(3):
        x[...] = latents(rng, 2)
        np.testing.assert_allclose(program.run({"x": x})["y"], np.tanh(x @ W), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_program_reuses_its_buffers(name: str, write: Write, rng: np.random.Generator) -> None:
    pytest.importorskip(name)
    program = open_backend(name, threads=1).program(write(TANH))
    addresses = {program.run({"x": latents(rng, 5)})["y"].ctypes.data for _ in range(5)}
    assert len(addresses) == 1


def test_program_takes_arrays_that_are_not_contiguous(
    backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    program = backend.program(write(TANH))
    wide = latents(rng, 6)
    for view in (wide[::2], np.asfortranarray(wide), wide[::-1]):
        for _ in range(2):
            np.testing.assert_allclose(
                program.run({"x": view})["y"], np.tanh(view @ W), atol=TOLERANCE
            )
            view *= np.float32(0.5)


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        ({"x": np.zeros((1, 5), np.float32)}, r"'x' must have shape .*4\).*\(1, 5\)"),
        ({"x": np.zeros(4, np.float32)}, r"'x' must have shape .*\(4,\)"),
        ({"x": np.zeros((1, 4))}, "'x' must be float32.*float64"),
        ({"z": np.zeros((1, 4), np.float32)}, "needs input 'x'.*z"),
    ],
)
def test_program_refuses_feeds_of_another_kind(
    backend: Backend, write: Write, feeds: dict[str, NDArray[np.float32]], told: str
) -> None:
    program = backend.program(write(TANH))
    with pytest.raises(ShapeError, match=told):
        program.run(feeds)
    assert program.run({"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [[0, 0, 0]]


def test_program_hands_nan_on_and_recovers(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    program = any_backend.program(write(TANH))
    x = latents(rng, 2)
    x[0, 0] = np.nan
    y = program.run({"x": x})["y"]
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()
    x[0, 0] = 1.0
    np.testing.assert_allclose(program.run({"x": x})["y"], np.tanh(x @ W), atol=TOLERANCE)


def test_program_survives_a_failing_run(backend: Backend, write: Write) -> None:
    program = backend.program(
        write("g (float[n,p] a, float[m,q] b) => (float[n,q] c) { c = MatMul(a, b) }")
    )
    a, b = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(program.run({"a": a, "b": b})["c"], np.full((2, 2), 3))
        with pytest.raises(BackendError, match="failed"):
            program.run({"a": b, "b": b})
    with pytest.raises(BackendError, match="failed"):
        program.run({"a": b, "b": b})
    np.testing.assert_array_equal(program.run({"a": a, "b": b})["c"], np.full((2, 2), 3))


@pytest.mark.parametrize("content", [None, b"", b"no graph at all"])
def test_program_refuses_a_file_that_is_no_graph(
    backend: Backend, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError, match=r"broken\.onnx"):
        backend.program(str(path))


def test_threads_do_not_change_the_answer(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    x, path = latents(rng, 99), write(TANH)
    one = any_backend.program(path, threads=1).run({"x": x})["y"].copy()
    two = any_backend.program(path, threads=2).run({"x": x})["y"]
    np.testing.assert_allclose(one, two, atol=TOLERANCE)


def test_pair_gives_the_closed_form_for_changing_batch_sizes(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    pair = any_backend.pair(write(FORWARD), write(BACKWARD))
    assert [spec.name for spec in pair.inputs] == ["x"]
    assert [spec.name for spec in pair.outputs] == ["y", "norm"]
    for batch in (1, 4, 4, 19, 1):
        x, ct = latents(rng, batch), rng.standard_normal((batch, 3)).astype(np.float32)
        outputs = pair.forward({"x": x})
        assert set(outputs) == {"y", "norm"}
        y = np.tanh(np.maximum(x @ W, 0))
        np.testing.assert_allclose(outputs["y"], y, atol=TOLERANCE)
        np.testing.assert_allclose(outputs["norm"], (y * y).sum(1), atol=TOLERANCE)
        result = pair.backward({"y": ct})
        assert set(result) == {"x"}
        np.testing.assert_allclose(result["x"], gradient(x, ct), atol=TOLERANCE * 5)


def test_pair_goes_back_several_times_from_one_forward(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    pair = any_backend.pair(write(FORWARD), write(BACKWARD))
    x = latents(rng, 3)
    pair.forward({"x": x})
    for _ in range(3):
        ct = rng.standard_normal((3, 3)).astype(np.float32)
        np.testing.assert_allclose(
            pair.backward({"y": ct})["x"], gradient(x, ct), atol=TOLERANCE * 5
        )


def test_pair_refuses_to_go_back_first(any_backend: Backend, write: Write) -> None:
    pair = any_backend.pair(write(FORWARD), write(BACKWARD))
    with pytest.raises(BackendError, match="before forward"):
        pair.backward({"y": np.zeros((1, 3), np.float32)})


def test_pair_refuses_a_missing_cotangent(backend: Backend, write: Write) -> None:
    pair = backend.pair(write(FORWARD), write(BACKWARD))
    pair.forward({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(ShapeError, match="cotangent of output 'y'"):
        pair.backward({"norm": np.zeros(1, np.float32)})


def test_openvino_pair_keeps_its_answer_beyond_the_compiled_shapes(
    write: Write, rng: np.random.Generator
) -> None:
    pytest.importorskip("openvino")
    from unblemish.runtime.backends.openvino import FIXED_SHAPES

    pair = open_backend("openvino", threads=1).pair(write(FORWARD), write(BACKWARD))
    for batch in (*range(1, FIXED_SHAPES + 4), 2, FIXED_SHAPES + 3):
        x, ct = latents(rng, batch), rng.standard_normal((batch, 3)).astype(np.float32)
        pair.forward({"x": x})
        np.testing.assert_allclose(
            pair.backward({"y": ct})["x"], gradient(x, ct), atol=TOLERANCE * 5
        )


def test_pair_hands_feature_maps_over(
    any_backend: Backend, rng: np.random.Generator, tmp_path: Path
) -> None:
    """A feature map inside, one that is an output as well, and an input kept for the way back."""
    torch = pytest.importorskip("torch")
    weight = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    forward = write_with_weight(
        "g (float[batch,4,h,w] x) => (float[batch,4,h,w] y, float[batch,4,h,w] map) "
        "{ c = Conv<pads=[1,1,1,1]>(x, W) map = Tanh(c) d = Conv<pads=[1,1,1,1]>(map, W) "
        "e = Mul(d, x) y = Sigmoid(e) }",
        weight,
        tmp_path / "forward.onnx",
    )
    backward = write_with_weight(
        "g (float[batch,4,h,w] x, float[batch,4,h,w] map, float[batch,4,h,w] y, "
        "float[batch,4,h,w] ct_y) => (float[batch,4,h,w] grad_x) {"
        "one = Constant<value = float {1}>() s = Sub(one, y) t = Mul(s, y) ct_e = Mul(t, ct_y) "
        "d = Conv<pads=[1,1,1,1]>(map, W) direct = Mul(ct_e, d) ct_d = Mul(ct_e, x) "
        "ct_map = ConvTranspose<pads=[1,1,1,1]>(ct_d, W) q = Mul(map, map) u = Sub(one, q) "
        "ct_c = Mul(ct_map, u) through = ConvTranspose<pads=[1,1,1,1]>(ct_c, W) "
        "grad_x = Add(direct, through) }",
        weight,
        tmp_path / "backward.onnx",
    )
    pair = any_backend.pair(forward, backward)
    for shape in ((1, 4, 6, 5), (2, 4, 3, 7), (1, 4, 6, 5)):
        x, ct = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        w = torch.tensor(weight).double()
        inner = torch.tanh(torch.nn.functional.conv2d(leaf, w, padding=1))
        y = torch.sigmoid(torch.nn.functional.conv2d(inner, w, padding=1) * leaf)
        y.backward(torch.tensor(ct).double())
        outputs = pair.forward({"x": x})
        assert set(outputs) == {"y"}
        np.testing.assert_allclose(outputs["y"], y.detach().numpy(), atol=CONV_TOLERANCE)
        result = pair.backward({"y": ct})["x"]
        np.testing.assert_allclose(result, leaf.grad.numpy(), atol=CONV_TOLERANCE * 10)


@pytest.mark.parametrize("batch", [1, 3])
def test_pair_refuses_a_cotangent_of_another_batch(batch: int, write: Write) -> None:
    # One engine: ONNX Runtime broadcasts, or fails in words of its own.
    pytest.importorskip("openvino")
    pair = open_backend("openvino", threads=1).pair(write(FORWARD), write(BACKWARD))
    pair.forward({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(ShapeError, match=rf"must have shape \(2, 3\); got \({batch}, 3\)"):
        pair.backward({"y": np.zeros((batch, 3), np.float32)})


def test_pair_refuses_graphs_that_do_not_belong_together(backend: Backend, write: Write) -> None:
    with pytest.raises(BackendError, match="do not belong together"):
        backend.pair(write(TANH), write(BACKWARD))


def test_pair_matches_autograd_on_a_convolution(
    any_backend: Backend, write: Write, rng: np.random.Generator, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    weight = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    forward = write_with_weight(
        "g (float[batch,2,h,w] x) => (float[batch,3,h,w] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, W) y = LeakyRelu<alpha=0.2>(c) }",
        weight,
        tmp_path / "forward.onnx",
    )
    backward = write_with_weight(
        "g (float[batch,3,h,w] y, float[batch,3,h,w] ct_y) => (float[batch,2,h,w] grad_x) {"
        "zero = Constant<value = float {0}>() slope = Constant<value = float {0.2}>()"
        "up = Greater(y, zero) low = Mul(ct_y, slope) g = Where(up, ct_y, low)"
        "grad_x = ConvTranspose<pads=[1,1,1,1]>(g, W) }",
        weight,
        tmp_path / "backward.onnx",
    )
    pair = any_backend.pair(forward, backward)
    for shape in ((1, 2, 7, 5), (3, 2, 4, 9), (1, 2, 1, 1)):
        x = rng.standard_normal(shape).astype(np.float32)
        ct = rng.standard_normal((shape[0], 3, *shape[2:])).astype(np.float32)
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        y = torch.nn.functional.leaky_relu(
            torch.nn.functional.conv2d(leaf, torch.tensor(weight).double(), padding=1), 0.2
        )
        y.backward(torch.tensor(ct).double())
        np.testing.assert_allclose(
            pair.forward({"x": x})["y"], y.detach().numpy(), atol=CONV_TOLERANCE
        )
        np.testing.assert_allclose(
            pair.backward({"y": ct})["x"], leaf.grad.numpy(), atol=CONV_TOLERANCE
        )


@pytest.mark.parametrize(
    ("body", "shape", "dims"),
    [
        (
            "y = Conv<pads=[1,1,1,1]>(x, W) z = ConvTranspose<pads=[1,1,1,1]>(x, W)",
            (16, 16, 3, 3),
            (16, 5, 7),
        ),
        (
            "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, W) "
            "z = ConvTranspose<pads=[1,1,1,1], strides=[2,2]>(x, W)",
            (16, 16, 4, 4),
            (16, 6, 4),
        ),
        ("t = Transpose<perm=[1,0]>(W) y = MatMul(x, W) z = MatMul(x, t)", (16, 16), (16,)),
        ("y = Gemm(x, W) z = Gemm<transB=1>(x, W)", (16, 16), (16,)),
    ],
)
def test_program_tells_both_directions_of_a_square_weight_apart(
    any_backend: Backend,
    body: str,
    shape: tuple[int, ...],
    dims: tuple[int, ...],
    rng: np.random.Generator,
    tmp_path: Path,
) -> None:
    symbols = ",".join("abcd"[: len(dims) + 1])
    given = ",".join(map(str, ("n", *dims)))
    text = f"g (float[{given}] x) => (float[{symbols}] y, float[{symbols.upper()}] z)"
    weight = rng.standard_normal(shape).astype(np.float32)
    path = write_with_weight(f"{text} {{ {body} }}", weight, tmp_path / "both.onnx")
    x = rng.standard_normal((2, *dims)).astype(np.float32)
    results = any_backend.program(path).run({"x": x})
    wanted = onnx.reference.ReferenceEvaluator(path).run(["y", "z"], {"x": x})
    for name, want in zip(("y", "z"), wanted, strict=True):
        np.testing.assert_allclose(results[name], want, atol=CONV_TOLERANCE * 10)


def test_program_follows_weights_that_are_fed(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    program = any_backend.program(
        write(
            "g (float[n,2,h,w] x, float[2,2,3,3] W) => (float[n,2,a,b] y, float[n,2,c,d] z) "
            "{ y = Conv(x, W) z = ConvTranspose(x, W) }"
        )
    )
    x = rng.standard_normal((1, 2, 4, 5)).astype(np.float32)
    weight = rng.standard_normal((2, 2, 3, 3)).astype(np.float32)
    first = {name: array.copy() for name, array in program.run({"x": x, "W": weight}).items()}
    weight *= 3
    for name, array in program.run({"x": x, "W": weight}).items():
        np.testing.assert_allclose(array, 3 * first[name], atol=CONV_TOLERANCE * 3)


def test_openvino_names_the_operators_it_cannot_convert(write: Write) -> None:
    pytest.importorskip("openvino")
    path = write("g (float[n,c] x, int64[k] axes) => (float[a,b] y) { y = ReduceSum(x, axes) }")
    with pytest.raises(BackendError, match="cannot convert ReduceSum"):
        open_backend("openvino").program(path)


def test_openvino_refuses_to_ignore_a_weight(rng: np.random.Generator, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    weight = rng.standard_normal((2, 2)).astype(np.float32)
    path = write_with_weight(
        "g (float[n,2] x, float[2,2] W) => (float[n,2] y) { y = MatMul(x, W) }",
        weight,
        tmp_path / "default.onnx",
    )
    program = open_backend("openvino", threads=1).program(path)
    with pytest.raises(ShapeError, match=r"takes no input 'W'.*remove the initialiser"):
        program.run({"x": np.ones((1, 2), np.float32), "W": weight})


def write_with_weight(text: str, weight: NDArray[np.float32], path: Path) -> str:
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    onnx.save(model, str(path))
    return str(path)


def test_open_backend_refuses_unknown_names_and_thread_counts() -> None:
    with pytest.raises(ConfigError, match=r"unknown backend 'abacus'.*openvino"):
        open_backend("abacus")
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        open_backend("onnxruntime", threads=0)


def test_open_backend_names_the_extra_when_openvino_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "unblemish.runtime.backends.openvino", raising=False)
    with pytest.raises(MissingDependencyError, match=r"unblemish\[openvino\]"):
        open_backend("openvino")


def test_openvino_refuses_a_precision_that_the_cpu_lacks() -> None:
    pytest.importorskip("openvino")
    from unblemish.runtime.backends.openvino import OpenVinoBackend

    with pytest.raises(BackendError, match=r"'f8'.*FP32"):
        OpenVinoBackend(precision="f8")
