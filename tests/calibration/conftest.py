"""A part that varies in four smooth ways, its generator as a bundle, and photographs of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle, write_bundle

SIDE, LATENT = 32, 4
NATIVE = (48, 40)


def _basis() -> NDArray[np.float32]:
    """Four cosines, (4, 32 * 32), amplitude 0.08 in [0, 1]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = [np.cos(np.pi * x), np.cos(np.pi * y), np.cos(2 * np.pi * x), np.cos(np.pi * (x + y))]
    return (0.08 * np.stack([wave.ravel() for wave in waves])).astype(np.float32)


def _generator() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(_basis(), "w"),
        numpy_helper.from_array(np.full(SIDE * SIDE, 0.5, np.float32), "b"),
        numpy_helper.from_array(np.array([-1, 1, SIDE, SIDE]), "shape"),
    ]
    nodes = [
        helper.make_node("Gemm", ["z", "w", "b"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["image"]),
    ]
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", LATENT])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])
    graph = helper.make_graph(nodes, "linear", [z], [image], weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def _tensors(values: Any) -> list[dict[str, Any]]:
    roles = {"z": "latent", "image": "image", "ct_image": "cotangent", "grad_z": "gradient"}
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else "batch" for d in kind.shape.dim]
        role = roles.get(value.name, "kept")
        found.append({"name": value.name, "shape": shape, "dtype": "float32", "role": role})
    return found


@pytest.fixture
def part_bundle(tmp_path: Path) -> Bundle:
    """The bundle, not calibrated."""
    from unblemish.export import differentiate

    model = _generator()
    both = differentiate(model, wrt=["z"])
    graphs = {
        "generator": model,
        "generator_forward": both.forward,
        "generator_backward": both.backward,
    }
    files: dict[str, bytes | Path] = {}
    records = {}
    for role, graph in graphs.items():
        files[f"{role}.onnx"] = graph.SerializeToString()
        inputs, outputs = _tensors(graph.graph.input), _tensors(graph.graph.output)
        records[role] = {"file": f"{role}.onnx", "inputs": inputs, "outputs": outputs, "flops": 0}
    fields = {
        "name": "part",
        "created_by": "test",
        "model": {
            "kind": "onnx",
            "latent_size": LATENT,
            "parameters": 0,
            "source": "part.onnx",
            "source_sha256": hashlib.sha256(model.SerializeToString()).hexdigest(),
        },
        "graphs": records,
        "preprocess": {"width": SIDE, "height": SIDE, "channels": 1, "low": 0.0, "high": 1.0},
        "rgi": {"lam": 0.5, "max_steps": 12, "candidates": 8},
    }
    return write_bundle(tmp_path / "part.bundle", files, fields)


@pytest.fixture
def photograph() -> Callable[[np.random.Generator], NDArray[np.uint8]]:
    """Photograph a random normal part: (48, 40) uint8, with sensor noise of 1 %."""

    def take(rng: np.random.Generator) -> NDArray[np.uint8]:
        image = 0.5 + (rng.standard_normal(LATENT) @ _basis()).reshape(SIDE, SIDE)
        native = cv2.resize(image, NATIVE[::-1], interpolation=cv2.INTER_CUBIC)
        noisy = native + rng.normal(0, 0.01, NATIVE)
        return np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)

    return take


@pytest.fixture
def normals_dir(
    tmp_path: Path, photograph: Callable[[np.random.Generator], NDArray[np.uint8]]
) -> Path:
    """A folder of 40 photographs of normal parts."""
    folder = tmp_path / "normals"
    folder.mkdir()
    rng = np.random.default_rng(11)
    for index in range(40):
        cv2.imwrite(str(folder / f"{index:02d}.png"), photograph(rng))
    return folder
