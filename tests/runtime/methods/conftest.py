"""A tiny detector: two random convolutions and a Gaussian of their features at every place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle, Manifest
from unblemish.bundle.manifest import Detector as Record
from unblemish.bundle.manifest import Mixture, Model, Preprocess
from unblemish.bundle.searches import F2padSettings
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.detectors.load import Detector
from unblemish.runtime.detectors.padim import Padim
from unblemish.runtime.detectors.protocol import FeaturePrograms
from unblemish.runtime.geometry import Geometry

Float = NDArray[np.float32]
HEIGHT, WIDTH, CHANNELS = 64, 48, 6


@dataclass(frozen=True)
class Tiny:
    """A bundle (its manifest alone) and its detector; the weights of the network for oracles."""

    bundle: Bundle
    detector: Detector
    weights: tuple[Float, Float]
    threshold: float

    def inputs(self, frame: Float) -> tuple[Float, Float, Float]:
        """Frame (H, W, C), model images and plain maps: what `F2pad.refine` takes."""
        images = Geometry(self.bundle.manifest.preprocess).unit_to_model(frame)
        return frame, images, self.detector.plain(images)


def network(weights: tuple[Float, Float]) -> Any:
    """image (batch, C, H, W) -> features (batch, H / 4, W / 4, 6)."""
    from onnx import TensorProto, helper, numpy_helper

    channels = weights[0].shape[1]
    kind = TensorProto.FLOAT
    same: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w1"], ["c1"], **same),
            helper.make_node("Tanh", ["c1"], ["t1"]),
            helper.make_node("Conv", ["t1", "w2"], ["c2"], **same),
            helper.make_node("Transpose", ["c2"], ["features"], perm=[0, 2, 3, 1]),
        ],
        "g",
        [helper.make_tensor_value_info("image", kind, ["batch", channels, "H", "W"])],
        [helper.make_tensor_value_info("features", kind, ["batch", "h", "w", CHANNELS])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights, 1)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def texture(rng: np.random.Generator, height: int, width: int, channels: int) -> Float:
    """A normal frame, (H, W, C): a soft gradient with a little noise."""
    base = 0.45 + 0.1 * np.linspace(0, 1, width)[None, :, None]
    noise = 0.02 * rng.standard_normal((height, width, channels))
    return np.clip(base + noise, 0, 1).astype(np.float32)


def gaussians(features: Float) -> Padim:
    """Fit mean and packed whitening at every place of features (N, h, w, c)."""
    flat = features.reshape(len(features), -1, features.shape[-1]).astype(np.float64)
    mean = flat.mean(axis=0)
    d = flat - mean
    covariance = np.einsum("nlc,nld->lcd", d, d) / len(d) + 1e-3 * np.eye(d.shape[2])
    w = np.linalg.inv(np.linalg.cholesky(covariance))
    rows, columns = np.tril_indices(d.shape[2])
    packed = np.ascontiguousarray(w[:, rows, columns], np.float32)
    return Padim(mean.astype(np.float32), packed)


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Tiny]:
    """make_tiny(channels=1, settings=..., **preprocess) -> Tiny."""
    pytest.importorskip("onnx")

    def make(channels: int = 1, settings: F2padSettings | None = None, **changes: Any) -> Tiny:
        import onnx

        from unblemish.export import differentiate

        rng = np.random.default_rng(5)
        weights = (
            rng.standard_normal((8, channels, 3, 3)).astype(np.float32),
            (0.4 * rng.standard_normal((CHANNELS, 8, 3, 3))).astype(np.float32),
        )
        model = network(weights)
        both = differentiate(model, wrt=["image"], outputs=["features"])
        paths = {name: tmp_path / f"{name}.onnx" for name in ("plain", "forward", "backward")}
        for name, proto in (
            ("plain", model),
            ("forward", both.forward),
            ("backward", both.backward),
        ):
            onnx.save(proto, paths[name])
        backend = OrtBackend(1)
        programs = FeaturePrograms(
            backend.program(str(paths["plain"])),
            backend.pair(str(paths["forward"]), str(paths["backward"])),
        )
        p = Preprocess(width=WIDTH, height=HEIGHT, channels=channels, low=0, high=1, **changes)
        normals = np.stack([texture(rng, HEIGHT, WIDTH, channels) for _ in range(40)])
        images = np.ascontiguousarray(normals.transpose(0, 3, 1, 2))
        features = np.concatenate([
            np.array(programs.plain.run({"image": i[None]})["features"]) for i in images
        ])  # fmt: skip
        padim = gaussians(features)
        mixture = Mixture(
            means=((0.5,) * channels,),
            precisions=(tuple(tuple(400.0 * (i == j) for j in range(channels))
                              for i in range(channels)),),
            weights=(1.0,),
        )  # fmt: skip
        record = Record(
            backbone="onnx", layers=("c2",), stride=4, align=8, reach=8, channels=CHANNELS,
            statistics={}, mixtures=(mixture,), normals=40, seed=0, smoothing_sigma=2.0,
        )  # fmt: skip
        detector = Detector(record, programs, padim)
        threshold = float(detector.plain(images[:8]).max())
        manifest = Manifest(
            name="tiny", created_by="test", method="padim",
            model=Model(kind="onnx", latent_size=0, parameters=1, source="tiny.onnx",
                        source_sha256="0" * 64),
            graphs={}, preprocess=p, detector=record, f2pad=settings or F2padSettings(beta=0.2),
            files={},
        )  # fmt: skip
        return Tiny(Bundle(tmp_path, manifest), detector, weights, threshold)

    return make
