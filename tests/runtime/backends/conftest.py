"""Every engine family that is installed, and graphs written as ONNX text."""

from __future__ import annotations

from pathlib import Path

import pytest
from backend_graphs import HEADER, Write, installed

from unblemish.runtime.backends import BACKENDS, CHAIN, Backend
from unblemish.runtime.backends.choose import obstacle_of


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph given as ONNX text; returns its path."""
    onnx = pytest.importorskip("onnx")

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
