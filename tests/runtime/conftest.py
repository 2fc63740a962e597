"""Tiny generators with random weights, as bundles: small enough to search in milliseconds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unblemish.bundle import Bundle, write_bundle

LATENT = 4
SIDE = 16

MakeBundle = Callable[..., Bundle]


def _initialiser(rng: np.random.Generator, name: str, shape: tuple[int, ...], size: float) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array((size * rng.standard_normal(shape)).astype(np.float32), name)


def _model(nodes: list[Any], inputs: Any, outputs: Any, weights: list[Any]) -> Any:
    from onnx import helper

    graph = helper.make_graph(nodes, "g", [inputs], [outputs], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _info(name: str, *shape: int | str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def generator_model(channels: int = 3) -> Any:
    """z (batch, 4) -> image (batch, channels, 16, 16) in [0, 1], smooth in z."""
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(3)
    weights = [
        _initialiser(rng, "w1", (LATENT, 24), 0.6),
        _initialiser(rng, "b1", (24,), 0.3),
        _initialiser(rng, "w2", (24, 256), 0.4),
        _initialiser(rng, "w3", (4, channels, 4, 4), 0.4),
        _initialiser(rng, "b3", (channels,), 0.2),
        numpy_helper.from_array(np.array([-1, 4, 8, 8]), "shape"),
    ]
    nodes = [
        helper.make_node("Gemm", ["z", "w1", "b1"], ["h1"]),
        helper.make_node("Tanh", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
        helper.make_node("Reshape", ["h3", "shape"], ["h4"]),
        helper.make_node(
            "ConvTranspose", ["h4", "w3", "b3"], ["h5"], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Sigmoid", ["h5"], ["image"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    return _model(nodes, _info("z", "batch", LATENT), image, weights)


def encoder_model(channels: int = 3) -> Any:
    """image -> z, linear and untrained: any start will do."""
    from onnx import helper

    rng = np.random.default_rng(4)
    weights = [_initialiser(rng, "we", (channels * SIDE * SIDE, LATENT), 0.05)]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "we"], ["z"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    return _model(nodes, image, _info("z", "batch", LATENT), weights)


def discriminator_model(channels: int = 3) -> Any:
    """image -> logit (batch, 1)."""
    from onnx import helper

    rng = np.random.default_rng(5)
    weights = [_initialiser(rng, "wd", (channels * SIDE * SIDE, 1), 0.1)]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wd"], ["logit"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    return _model(nodes, image, _info("logit", "batch", 1), weights)


def features_model(channels: int = 3) -> Any:
    """image -> features (batch, 4, 16, 16), a smooth convolutional layer."""
    from onnx import helper

    rng = np.random.default_rng(6)
    weights = [_initialiser(rng, "wf", (4, channels, 3, 3), 0.4)]
    nodes = [
        helper.make_node("Conv", ["image", "wf"], ["before"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["before"], ["features"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    return _model(nodes, image, _info("features", "batch", 4, SIDE, SIDE), weights)


def smooth_basis(channels: int = 1) -> np.ndarray[Any, Any]:
    """Orthonormal low-frequency cosines, (channels * 16 * 16, 9 * channels) float64."""
    wave = np.cos(np.pi * np.outer(np.arange(SIDE) + 0.5, np.arange(3)) / SIDE)
    wave /= np.linalg.norm(wave, axis=0)
    plane = np.einsum("ia,jb->ijab", wave, wave).reshape(SIDE * SIDE, 9)
    return np.kron(np.eye(channels), plane)


def autoencoder_model(channels: int = 1, *, vae: bool = False) -> Any:
    """image -> reconstruction, the nearest smooth image; linear, its code the cosines.

    A 'VAE' also gives mean (the code), log_variance and log_scale, the last by a convolution.
    """
    from onnx import helper, numpy_helper

    basis = smooth_basis(channels).astype(np.float32)
    weights = [
        numpy_helper.from_array(basis, "we"),
        numpy_helper.from_array(np.ascontiguousarray(basis.T), "wd"),
        numpy_helper.from_array(np.array([-1, channels, SIDE, SIDE]), "shape"),
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "we"], ["code"]),
        helper.make_node("MatMul", ["code", "wd"], ["made"]),
        helper.make_node("Reshape", ["made", "shape"], ["reconstruction"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    model = _model(nodes, image, _info("reconstruction", "batch", channels, SIDE, SIDE), weights)
    if vae:
        _add_spread(model, channels)
    return model


def _add_spread(model: Any, channels: int) -> None:
    from onnx import helper, numpy_helper

    rng, code = np.random.default_rng(9), 9 * channels
    model.graph.initializer.extend([
        _initialiser(rng, "wv", (code, code), 0.05),
        _initialiser(rng, "ws", (channels, channels, 3, 3), 0.05),
        numpy_helper.from_array(np.full(channels, -1.5, np.float32), "bs"),
    ])  # fmt: skip
    model.graph.node.extend([
        helper.make_node("Identity", ["code"], ["mean"]),
        helper.make_node("MatMul", ["code", "wv"], ["log_variance"]),
        helper.make_node("Conv", ["image", "ws", "bs"], ["log_scale"], pads=[1, 1, 1, 1]),
    ])  # fmt: skip
    moments = [_info(name, "batch", code) for name in ("mean", "log_variance")]
    scale = _info("log_scale", "batch", channels, SIDE, SIDE)
    model.graph.output.extend([*moments, scale])


def decoder_model(channels: int = 1) -> Any:
    """z (batch, 9 channels) -> image, the cosines' sum: the second half of `autoencoder_model`."""
    from onnx import helper, numpy_helper

    basis = smooth_basis(channels).astype(np.float32)
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(basis.T), "wd"),
        numpy_helper.from_array(np.array([-1, channels, SIDE, SIDE]), "shape"),
    ]
    nodes = [
        helper.make_node("MatMul", ["z", "wd"], ["made"]),
        helper.make_node("Reshape", ["made", "shape"], ["image"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    return _model(nodes, _info("z", "batch", 9 * channels), image, weights)


def projector_model(channels: int = 1) -> Any:
    """image -> z, the first half of `autoencoder_model`."""
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(smooth_basis(channels).astype(np.float32), "we")]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "we"], ["z"]),
    ]
    image = _info("image", "batch", channels, SIDE, SIDE)
    return _model(nodes, image, _info("z", "batch", 9 * channels), weights)


_ROLES = {"z": "latent", "image": "image", "logit": "logit", "features": "feature",
          "reconstruction": "reconstruction", "mean": "moment", "log_variance": "moment",
          "log_scale": "scale"}  # fmt: skip


def _role(name: str, weights: Sequence[str], other: str) -> str:
    if name.startswith("ct_"):
        return "cotangent"
    if name.startswith("grad_"):
        return "gradient"
    return "weight" if name in weights else _ROLES.get(name, other)


def _record(model: Any, file: str, weights: Sequence[str] = ()) -> dict[str, Any]:
    from onnx import helper

    def tensors(values: Any) -> list[dict[str, Any]]:
        found = []
        for value in values:
            kind = value.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else "batch" for d in kind.shape.dim]
            dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
            role = _role(value.name, weights, "kept")
            found.append({"name": value.name, "shape": shape, "dtype": dtype, "role": role})
        return found

    graph = model.graph
    return {
        "file": file,
        "inputs": tensors(graph.input),
        "outputs": tensors(graph.output),
        "flops": 0,
    }


class _Builder:
    """Collects the graphs of a bundle."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Path] = {}
        self.graphs: dict[str, Any] = {}

    def plain(self, role: str, model: Any) -> None:
        self.files[f"{role}.onnx"] = model.SerializeToString()
        self.graphs[role] = _record(model, f"{role}.onnx")

    def pair(self, role: str, model: Any, wrt: list[str], weights: Sequence[str] = ()) -> None:
        from unblemish.export import differentiate

        both = differentiate(model, wrt=[*wrt, *weights])
        for way, graph in (("forward", both.forward), ("backward", both.backward)):
            file = f"{role}_{way}.onnx"
            self.files[file] = graph.SerializeToString()
            self.graphs[f"{role}_{way}"] = _record(graph, file, weights)


def build_bundle(
    path: Path,
    *,
    channels: int = 3,
    rgi: Mapping[str, Any] | None = None,
    calibrated: bool = True,
    finetune: bool = False,
    extras: bool = False,
    low: float = 0.0,
    high: float = 1.0,
    **fields: Any,
) -> Bundle:
    from onnx import numpy_helper

    model = generator_model(channels)
    builder = _Builder()
    builder.plain("generator", model)
    builder.pair("generator", model, ["z"])
    builder.plain("encoder", encoder_model(channels))
    if extras:
        builder.pair("discriminator", discriminator_model(channels), ["image"])
        builder.pair("features", features_model(channels), ["image"])
        builder.pair("discriminator_features", features_model(channels), ["image"])
    names = ["w1", "b1", "w2", "w3", "b3"]
    if finetune:
        builder.pair("finetune", model, ["z"], names)
        held = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        stream = io.BytesIO()
        np.savez(stream, **{name: held[name] for name in names})
        builder.files["weights.npz"] = stream.getvalue()
        fields["finetune_weights"] = "weights.npz"
    preprocess = {"width": SIDE, "height": SIDE, "channels": channels, "low": low, "high": high}
    preprocess.update(fields.pop("preprocess", {}))
    calibration = {
        "pixel_threshold": 0.1,
        "image_threshold": 0.15,
        "false_reject_rate": 0.01,
        "normals": 10,
        "seed": 0,
    }
    source = builder.files["generator.onnx"]
    assert isinstance(source, bytes)
    manifest = {
        "name": "tiny",
        "created_by": "test",
        "model": {
            "kind": "onnx",
            "latent_size": LATENT,
            "parameters": 1,
            "source": "tiny.onnx",
            "source_sha256": hashlib.sha256(source).hexdigest(),
        },
        "graphs": builder.graphs,
        "preprocess": preprocess,
        "rgi": {"lam": 0.02, **(rgi or {})},
        "calibration": calibration if calibrated else None,
        **fields,
    }
    return write_bundle(path, builder.files, manifest)


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Build a bundle of the tiny generator; keywords as `build_bundle`."""

    def make(**options: Any) -> Bundle:
        return build_bundle(tmp_path / "tiny.bundle", **options)

    return make


@pytest.fixture
def make_energy_bundle(tmp_path: Path) -> MakeBundle:
    """Build a bundle of the smooth autoencoder.

    Keywords: channels, energy, latent (decoder and encoder apart), vae (with log_scale and the
    moments of the code), other fields of the manifest.
    """

    def make(
        channels: int = 1,
        *,
        energy: Mapping[str, Any] | None = None,
        latent: bool = False,
        vae: bool = False,
        **fields: Any,
    ) -> Bundle:
        builder = _Builder()
        model = autoencoder_model(channels, vae=vae)
        builder.plain("reconstruct", model)
        builder.pair("reconstruct", model, ["image"])
        if latent:
            builder.pair("generator", decoder_model(channels), ["z"])
            builder.plain("encoder", projector_model(channels))
        source = builder.files["reconstruct.onnx"]
        assert isinstance(source, bytes)
        preprocess = {"width": SIDE, "height": SIDE, "channels": channels, "low": 0, "high": 1}
        preprocess.update(fields.pop("preprocess", {}))
        manifest = {
            "name": "smooth",
            "created_by": "test",
            "method": "energy",
            "model": {
                "kind": "l2ae",
                "latent_size": 9 * channels,
                "parameters": 1,
                "source": "smooth.onnx",
                "source_sha256": hashlib.sha256(source).hexdigest(),
            },
            "graphs": builder.graphs,
            "preprocess": preprocess,
            "energy": dict(energy or {}),
            **fields,
        }
        return write_bundle(tmp_path / "smooth.bundle", builder.files, manifest)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny generator in colour, calibrated; shared, so not to be changed."""
    return build_bundle(tmp_path_factory.mktemp("bundles") / "tiny.bundle")


@pytest.fixture(scope="session")
def rich_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As `tiny_bundle`, with discriminator, features and graphs for fine-tuning."""
    path = tmp_path_factory.mktemp("bundles") / "rich.bundle"
    return build_bundle(path, finetune=True, extras=True)


@pytest.fixture(scope="session")
def generate() -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The tiny colour generator in float64 NumPy: (B, 4) -> (B, 3, 16, 16)."""
    from onnx import numpy_helper

    held = {
        w.name: numpy_helper.to_array(w).astype(np.float64)
        for w in generator_model().graph.initializer
    }

    def forward(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        hidden = np.tanh(z @ held["w1"] + held["b1"]) @ held["w2"]
        small = hidden.reshape(-1, 4, 8, 8)
        out = np.zeros((len(z), 3, SIDE + 2, SIDE + 2))
        for i in range(4):
            for j in range(4):
                spread = np.einsum("bihw,io->bohw", small, held["w3"][:, :, i, j])
                out[:, :, i : i + SIDE : 2, j : j + SIDE : 2] += spread
        logits = out[:, :, 1:-1, 1:-1] + held["b3"][:, None, None]
        return 1 / (1 + np.exp(-logits))

    return forward


@pytest.fixture
def part(
    generate: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A frame (16, 16, 3) float32 with a planted defect, the normal image, and the true mask."""
    clean = generate(rng.standard_normal((1, LATENT)))[0].transpose(1, 2, 0)
    truth = np.zeros((SIDE, SIDE), np.bool_)
    truth[4:9, 6:11] = True
    frame = clean.copy()
    frame[truth] = np.where(clean[truth].mean(axis=0) > 0.5, 0.02, 0.98)
    return frame.astype(np.float32), clean.astype(np.float32), truth
