"""ONNX Runtime on a device: the CPU as the device for real, and a double for the order rules."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.backends import ort_device, ort_session
from unblemish.runtime.backends.ort_device import OrtDeviceBackend
from unblemish.runtime.backends.ort_session import CPU, CUDA, TENSORRT, provider_options

onnx = pytest.importorskip("onnx")
sys.path.insert(0, str(Path(__file__).parent))
import ort_double  # noqa: E402

TOLERANCE = 1e-5  # sums of 4 products of float32, there and back
W = np.array(
    [[1.0, -2.0, 0.5], [0.25, 1.5, -1.0], [-0.75, 0.1, 2.0], [1.25, -0.5, 0.3]], np.float32
)
WEIGHT = "<float[4,3] W = {1, -2, 0.5, 0.25, 1.5, -1, -0.75, 0.1, 2, 1.25, -0.5, 0.3}>"
# Kept: a mask, the output itself, and the input.
FORWARD = f"""<ir_version: 9, opset_import: ["": 17]>
g (float[batch,4] x) => (float[batch,3] y, bool[batch,3] kept) {WEIGHT} {{
    h = MatMul(x, W) zero = Constant<value = float {{0}}>() kept = Greater(h, zero)
    r = Relu(h) y = Tanh(r) }}"""
BACKWARD = f"""<ir_version: 9, opset_import: ["": 17]>
g (bool[batch,3] kept, float[batch,3] y, float[batch,4] x, float[batch,3] ct_y)
    => (float[batch,4] grad_x) {WEIGHT} {{
    zero = Constant<value = float {{0}}>() one = Constant<value = float {{1}}>()
    square = Mul(y, y) slope = Sub(one, square) g = Mul(ct_y, slope)
    masked = Where(kept, g, zero) Wt = Transpose<perm = [1, 0]>(W)
    back = MatMul(masked, Wt) nothing = Mul(x, zero) grad_x = Add(back, nothing) }}"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, text in {"forward": FORWARD, "backward": BACKWARD}.items():
        onnx.save(onnx.parser.parse_model(text), str(tmp_path / f"{name}.onnx"))
    return str(tmp_path / "forward.onnx"), str(tmp_path / "backward.onnx")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Sessions opened in the double, which takes the place of the package."""
    opened: list[Any] = []
    double = ort_double.module(opened)
    monkeypatch.setattr(ort_session, "ort", double)
    monkeypatch.setattr(ort_device, "ort", double)
    return opened


def check(pair: Any, rng: np.random.Generator, batch: int) -> None:
    """Forward and twice backward against the closed form."""
    x = rng.standard_normal((batch, 4)).astype(np.float32)
    y = np.tanh(np.maximum(x @ W, 0))
    np.testing.assert_allclose(pair.forward({"x": x})["y"], y, atol=TOLERANCE)
    for _ in range(2):
        ct = rng.standard_normal((batch, 3)).astype(np.float32)
        expected = (ct * (1 - y**2) * (x @ W > 0)) @ W.T
        np.testing.assert_allclose(pair.backward({"y": ct})["x"], expected, atol=TOLERANCE)


def test_pair_on_the_cpu_as_a_device(files: tuple[str, str], rng: np.random.Generator) -> None:
    pair = OrtDeviceBackend("ort-cpu", 1).pair(*files)
    assert [spec.name for spec in pair.outputs] == ["y"]
    for batch in (1, 3, 19, 3, 1, 2, 4, 5, 6, 7, 8, 9, 3):  # more sizes than are kept
        check(pair, rng, batch)


def test_program_takes_arrays_with_gaps(files: tuple[str, str], rng: np.random.Generator) -> None:
    program = OrtDeviceBackend("ort-cpu", 1).program(files[0])
    wide = rng.standard_normal((6, 4)).astype(np.float32)
    for view in (wide[::2], np.asfortranarray(wide), wide[::-1]):
        found = program.run({"x": view})["y"]
        np.testing.assert_allclose(found, np.tanh(np.maximum(view @ W, 0)), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["ort-cuda", "ort-tensorrt"])
def test_pair_keeps_the_rules_of_recorded_runs(
    name: str, files: tuple[str, str], sessions: list[Any], rng: np.random.Generator
) -> None:
    pair = OrtDeviceBackend(name, 1).pair(*files)
    assert [session.graph for session in sessions] == [True, True]
    for batch in (1, 3, 3, 1, 3):
        check(pair, rng, batch)
    forward, backward = sessions
    assert forward.log[:3] == ["inputs", "run -1", "outputs"]  # the first run is not recorded
    assert forward.log.count("run 1") == 1
    assert forward.log.count("run 2") == 2
    assert [call for call in backward.log if call.startswith("run")].count("run -1") == 2


def test_pair_forgets_sizes_without_replaying_a_recording_on_other_tensors(
    files: tuple[str, str], sessions: list[Any], rng: np.random.Generator
) -> None:
    pair = OrtDeviceBackend("ort-cuda", 1).pair(*files)
    for batch in (*range(1, 12), 1, 1, 11, 2):
        check(pair, rng, batch)


def test_pair_hands_kept_tensors_over_on_the_device(
    files: tuple[str, str], sessions: list[Any], rng: np.random.Generator
) -> None:
    pair = OrtDeviceBackend("ort-cuda", 1).pair(*files)
    written: list[tuple[int, ...]] = []
    original = ort_double.Value.update_inplace

    def count(self: Any, array: np.ndarray) -> None:
        written.append(array.shape)
        original(self, array)

    check(pair, rng, 2)
    ort_double.Value.update_inplace = count  # type: ignore[method-assign]
    try:
        check(pair, rng, 2)
    finally:
        ort_double.Value.update_inplace = original  # type: ignore[method-assign]
    assert written == [(2, 4), (2, 3), (2, 3)]  # x once, and a cotangent for each way back


def test_recorded_session_refuses_a_second_thread(
    files: tuple[str, str], sessions: list[Any]
) -> None:
    program = OrtDeviceBackend("ort-cuda", 1).program(files[0])
    x = np.zeros((1, 4), np.float32)
    program.run({"x": x})
    raised: list[BaseException] = []

    def other() -> None:
        try:
            program.run({"x": x})
        except BackendError as error:
            raised.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "one inspector per thread" in str(raised[0])


def test_session_that_cannot_be_recorded_is_opened_without(
    tmp_path: Path, sessions: list[Any]
) -> None:
    """The double refuses to record graphs that read whole numbers."""
    path = str(tmp_path / "rows.onnx")
    text = """<ir_version: 9, opset_import: ["": 17]>
        g (float[n,4] x, int64[k] i) => (float[k,4] y) { y = Gather<axis = 0>(x, i) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    backend = OrtDeviceBackend("ort-cuda", 1)
    program = backend.program(path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(2):
        np.testing.assert_array_equal(program.run({"x": x, "i": np.array([1])})["y"], x[1:])
    assert "without a CUDA graph" in backend.notes[0]
    assert sessions[-1].graph is False


def test_provider_that_gives_way_is_an_error(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session, "ort", ort_double.module([], refuse=(CUDA,)))
    with pytest.raises(BackendError, match="CUDAExecutionProvider gave way to CPUExec"):
        OrtDeviceBackend("ort-cuda", 1).program(files[0])


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        ({"x": np.zeros((1, 5), np.float32)}, "'x' must have shape"),
        ({"x": np.zeros((1, 4))}, "'x' must be float32"),
        ({}, "needs input 'x'"),
    ],
)
def test_program_refuses_other_feeds(files: tuple[str, str], feeds: Any, told: str) -> None:
    program = OrtDeviceBackend("ort-cpu", 1).program(files[0])
    with pytest.raises(ShapeError, match=told):
        program.run(feeds)
    assert program.run({"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [[0, 0, 0]]


def test_pair_refuses_what_it_cannot_go_back_from(files: tuple[str, str]) -> None:
    pair = OrtDeviceBackend("ort-cpu", 1).pair(*files)
    with pytest.raises(BackendError, match="before forward"):
        pair.backward({"y": np.zeros((1, 3), np.float32)})
    pair.forward({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(ShapeError, match="must have shape"):
        pair.backward({"y": np.zeros((1, 3), np.float32)})


def test_options_of_providers() -> None:
    assert provider_options(CPU) == [(CPU, {})]
    (cuda, told), host = provider_options(CUDA, device=1, stream=77, graph=True)
    assert (cuda, host) == (CUDA, (CPU, {}))
    assert told == {
        "device_id": "1",
        "user_compute_stream": "77",
        "use_tf32": "0",
        "enable_cuda_graph": "1",
    }
    names = [name for name, _ in provider_options(TENSORRT)]
    assert names == [TENSORRT, CUDA, CPU]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_float32_tensors_are_never_computed_in_less(precision: str) -> None:
    """Allowed halves or bytes, TensorRT's builder may take them wherever they are quicker."""
    for _, told in provider_options(TENSORRT, precision=precision):
        assert not any(
            name.endswith(("fp16_enable", "bf16_enable", "int8_enable")) for name in told
        )
    exact = dict(provider_options(CUDA, precision=precision))[CUDA].get("use_tf32")
    assert exact == ("0" if precision == "fp32" else None)


def test_missing_library_is_named_in_the_words_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session.ort, "__file__", str(tmp_path / "__init__.py"))
    assert ort_session.missing_library(CUDA) == "its libraries cannot be loaded"
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    assert "libonnxruntime_providers_cuda.so" in ort_session.missing_library(CUDA)


@pytest.mark.gpu
def test_pair_on_a_gpu(files: tuple[str, str], rng: np.random.Generator) -> None:
    pair = OrtDeviceBackend("ort-cuda", 1).pair(*files)
    for batch in (1, 3, 19, 3, 1):
        check(pair, rng, batch)
