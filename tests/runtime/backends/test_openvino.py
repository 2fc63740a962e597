"""What OpenVINO alone does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from backend_graphs import (
    BACKWARD,
    FORWARD,
    TOLERANCE,
    Write,
    gradient,
    latents,
    write_with_weight,
)

from unblemish.errors import BackendError, MissingDependencyError, ShapeError
from unblemish.runtime.backends import open_backend


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
