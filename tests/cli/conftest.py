"""A bundle small enough to compute by hand: the generator is a linear map of four smooth modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from unblemish.bundle import write_bundle
from unblemish.cli import main

SIDE, LATENT = 24, 4


class Run(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run the command line in this process."""

    def command(*arguments: Any) -> Run:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capfd.readouterr())

    return command


@pytest.fixture(scope="session")
def modes() -> tuple[np.ndarray, np.ndarray]:
    """(LATENT, SIDE * SIDE) modes and the mean image they are added to."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    waves = [np.cos(np.pi * x), np.cos(np.pi * y), np.cos(2 * np.pi * x), np.cos(2 * np.pi * y)]
    weights = 0.04 * np.stack([wave.ravel() for wave in waves]).astype(np.float32)
    return weights, np.full(SIDE * SIDE, 0.5, np.float32)


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    """Fields of the manifest of the little bundle, calibration included."""
    image = {"name": "image", "shape": image_shape(), "dtype": "float32", "role": "image"}
    latent = {"name": "z", "shape": ["batch", LATENT], "dtype": "float32", "role": "latent"}
    flops = 2 * LATENT * SIDE * SIDE
    forward = {"inputs": [latent], "outputs": [image], "flops": flops}
    backward = {
        "file": "backward.onnx",
        "inputs": [{**image, "name": "ct_image", "role": "cotangent"}],
        "outputs": [{**latent, "name": "grad_z", "role": "gradient"}],
        "flops": flops,
    }
    return {
        "name": "modes",
        "created_by": "0.1.0",
        "model": {
            "kind": "onnx",
            "latent_size": LATENT,
            "parameters": LATENT * SIDE * SIDE,
            "source": "modes.onnx",
            "source_sha256": "0" * 64,
        },
        "graphs": {
            "generator": {"file": "forward.onnx", **forward},
            "generator_forward": {"file": "forward.onnx", **forward},
            "generator_backward": backward,
        },
        "preprocess": {"width": SIDE, "height": SIDE, "channels": 1, "low": 0.0, "high": 1.0},
        "rgi": {"lam": 0.002, "candidates": 8, "max_steps": 40},
        "calibration": {
            "pixel_threshold": 0.1,
            "image_threshold": 0.1,
            "false_reject_rate": 0.01,
            "normals": 20,
            "seed": 0,
        },
    }


@pytest.fixture(scope="session")
def graphs(modes: tuple[np.ndarray, np.ndarray]) -> dict[str, bytes]:
    """The two graphs: image = mean + z W, and grad_z = ct_image W^T."""
    weights, mean = modes
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])
    latent = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", LATENT])
    forward = helper.make_graph(
        [
            helper.make_node("Gemm", ["z", "w", "mean"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["image"]),
        ],
        "forward",
        [latent],
        [image],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(mean, "mean"),
            numpy_helper.from_array(np.array([-1, 1, SIDE, SIDE]), "shape"),
        ],
    )
    cotangent = helper.make_tensor_value_info("ct_image", TensorProto.FLOAT, image_shape())
    gradient = helper.make_tensor_value_info("grad_z", TensorProto.FLOAT, ["batch", LATENT])
    backward = helper.make_graph(
        [
            helper.make_node("Flatten", ["ct_image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w"], ["grad_z"], transB=1),
        ],
        "backward",
        [cotangent],
        [gradient],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 13)]
    return {
        f"{graph.name}.onnx": onnx.helper.make_model(
            graph, opset_imports=opset, ir_version=8
        ).SerializeToString()
        for graph in (forward, backward)
    }


def image_shape() -> list[str | int]:
    """Shape of the image with a symbolic batch."""
    return ["batch", 1, SIDE, SIDE]


@pytest.fixture
def bundle(tmp_path: Path, graphs: dict[str, bytes], manifest: dict[str, Any]) -> Path:
    """A calibrated bundle of the linear generator."""
    return write_bundle(tmp_path / "modes.bundle", graphs, manifest).path


@pytest.fixture
def parts(tmp_path: Path, modes: tuple[np.ndarray, np.ndarray]) -> Path:
    """Pictures in the layout of MVTec AD: three good ones, two with a dark square, their truth.

    A good picture is an image of the generator, but for rounding to 8 bits; the square is 0.3 of
    full scale darker, three times the pixel threshold.
    """
    weights, mean = modes
    root, random = tmp_path / "parts", np.random.default_rng(5)
    for category, count in (("good", 3), ("hole", 2)):
        for index in range(count):
            image = (mean + random.uniform(-1, 1, LATENT) @ weights).reshape(SIDE, SIDE)
            truth = np.zeros((SIDE, SIDE), np.uint8)
            if category == "hole":
                image[5:10, 6 + index : 12 + index] -= 0.3
                truth[5:10, 6 + index : 12 + index] = 255
                write(root / "ground_truth" / category / f"{index}_mask.png", truth)
            write(root / "test" / category / f"{index}.png", (image * 255 + 0.5).astype(np.uint8))
    return root


def write(path: Path, picture: np.ndarray) -> None:
    """Write a picture, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
