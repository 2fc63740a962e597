"""One suite for the programs of every engine family: same answers, same refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backend_graphs import CONV_TOLERANCE, TANH, TOLERANCE, W, Write, latents, write_with_weight
from numpy.typing import NDArray

from unblemish.errors import BackendError, ConfigError, ShapeError
from unblemish.runtime.backends import Backend, open_backend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")


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


def test_open_backend_refuses_unknown_names_and_thread_counts() -> None:
    with pytest.raises(ConfigError, match=r"unknown backend 'abacus'.*openvino"):
        open_backend("abacus")
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        open_backend("onnxruntime", threads=0)
