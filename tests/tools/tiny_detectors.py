"""Bundles of detectors whose network is two convolutions, fitted to frames of one texture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Mixture
from unblemish.export.detector import write_detector_bundle
from unblemish.export.feature_graph import FeatureGraph
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.inspector import Inspector

HEIGHT, WIDTH = 72, 96
STRIDE, ALIGN = 4, 8
MAPS = ((6, 4), (4, 8))  # channels and stride
CHANNELS = 10
METHODS = ("padim", "low rank", "patchcore", "cflow")


def network(camera: int) -> FeatureGraph:
    """Two layers, the second on cells of twice the size, repeated; any size, channels last."""
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(size=(6, camera, 5, 5)).astype(np.float32) / 5,
        rng.normal(size=(4, 6, 3, 3)).astype(np.float32) / 5,
    ]
    first: dict[str, Any] = {"strides": [4, 4], "pads": [2, 2, 1, 1]}
    second: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 0, 0]}
    larger = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], **first),
        helper.make_node("Tanh", ["c0"], ["a"]),
        helper.make_node("Conv", ["a", "w1"], ["c1"], **second),
        helper.make_node("Tanh", ["c1"], ["small"]),
        helper.make_node("Resize", ["small", "", "scales"], ["b"], nearest_mode="floor", **larger),
        helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        helper.make_node("Transpose", ["both"], ["features"], perm=[0, 2, 3, 1]),
    ]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", kind, ["batch", camera, "H", "W"])],
        [helper.make_tensor_value_info("features", kind, ["batch", "h", "w", CHANNELS])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
        + [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    parameters = sum(w.size for w in weights)
    return FeatureGraph(
        model, "onnx", ("a", "b"), STRIDE, ALIGN, 12, CHANNELS, parameters, camera, maps=MAPS
    )


def normal_frames(count: int, camera: int = 1, seed: int = 1) -> np.ndarray:
    """A ramp with noise, (count, 72, 96) or (count, 72, 96, 3) uint8."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(80, 160, WIDTH)[None, :, None] + np.zeros((HEIGHT, 1, camera))
    frames = np.stack([ramp + rng.normal(0, 3, ramp.shape) for _ in range(count)])
    return (frames[..., 0] if camera == 1 else frames).astype(np.uint8)


def spoilt(frame: np.ndarray, box: tuple[int, int, int, int] = (30, 40, 52, 62)) -> np.ndarray:
    """The frame with a bright patch at rows and columns."""
    out = frame.copy()
    top, bottom, left, right = box
    out[top:bottom, left:right] = 250
    return out


def tiny_detector(
    folder: Path, method: str, camera: int = 1, *, tiles: bool = False, **settings: Any
) -> Bundle:
    """A calibrated bundle of one of `METHODS`; tiles: large frames are cut; settings: of F2PAD."""
    preprocess = {"width": WIDTH, "height": HEIGHT, "channels": camera, "low": 0, "high": 1}
    frames = normal_frames(24, camera)
    source, graph = folder / "net.onnx", network(camera)
    source.write_bytes(graph.model.SerializeToString())
    images = frames.reshape(len(frames), HEIGHT, WIDTH, camera).transpose(0, 3, 1, 2)
    program = OrtBackend(1).program(str(source))
    found = program.run({"image": np.ascontiguousarray(images, np.float32) / np.float32(255)})
    features = np.array(found["features"])
    statistics, flows = _STATISTICS[method](features)
    precision = np.eye(camera) * 400
    mixture = Mixture(
        means=((0.47,) * camera,),
        precisions=(tuple(tuple(float(v) for v in row) for row in precision),),
        weights=(1.0,),
    )
    bundle = write_detector_bundle(
        folder / "part.bundle", graph=graph, method="padim" if method == "low rank" else method,
        statistics=statistics, mixtures=[mixture], flows=flows,
        preprocess=preprocess | ({"geometry": "tiles", "scale": 1.0} if tiles else {}),
        normals=len(frames), seed=0, source=source, name="part", smoothing=2.0, f2pad=settings,
    )  # fmt: skip
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        peaks = [float(inspector.search(frame).evidence or 0) for frame in frames]
    return calibrated(bundle, 1.1 * max(peaks))


def calibrated(bundle: Bundle, peak: float) -> Bundle:
    """As calibration would leave it, where normal frames reach that peak."""
    manifest = bundle.manifest
    assert manifest.detector is not None
    changed = {"mask_threshold": peak, "normal_peak": peak}
    raw = manifest.model_dump() | {
        "detector": manifest.detector.model_copy(update=changed).model_dump(),
        "calibration": {
            "pixel_threshold": 0.1, "image_threshold": peak, "false_reject_rate": 0.01,
            "normals": 24, "seed": 0, "refine": "f2pad",
        },
    }  # fmt: skip
    return Bundle(bundle.path, type(manifest).model_validate(raw))


def _padim(features: np.ndarray) -> tuple[dict[str, np.ndarray], list[Any]]:
    mean, covariance = _moments(features)
    w = np.linalg.inv(np.linalg.cholesky(covariance))
    rows, columns = np.tril_indices(CHANNELS)
    packed = np.ascontiguousarray(w[:, rows, columns], np.float32)
    return {"mean": mean.astype(np.float32), "whitening": packed}, []


def _low_rank(features: np.ndarray) -> tuple[dict[str, np.ndarray], list[Any]]:
    mean, covariance = _moments(features)
    values, vectors = np.linalg.eigh(covariance)
    noise = values[:, :7].mean(axis=1)
    share = np.sqrt(1 - noise[:, None] / values[:, 7:])
    statistics = {"mean": mean, "basis": vectors[:, :, 7:] * share[:, None], "noise": noise}
    statistics["inverse_variance"] = 1 / statistics.pop("noise")
    return {k: np.ascontiguousarray(v, np.float32) for k, v in statistics.items()}, []


def _bank(features: np.ndarray) -> tuple[dict[str, np.ndarray], list[Any]]:
    return {"bank": features[:6].reshape(-1, CHANNELS)[::5].copy()}, []


def _cflow(features: np.ndarray) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Flows as they are before training: the Gaussian of all places, a little bent."""
    import torch

    from unblemish.calibration.features.flow_training import whiten
    from unblemish.export.models.flow import ConditionalFlow

    flows, typical, first = [], [], 0
    rng = np.random.default_rng(3)
    for channels, stride in MAPS:
        times = stride // STRIDE
        own = features[:, ::times, ::times, first : first + channels]
        flow = ConditionalFlow(channels, own.shape[1:3], blocks=2, hidden=7, seed=0)
        whiten(flow, np.ascontiguousarray(own.reshape(-1, channels)))
        with torch.no_grad():
            for name, weights in flow.named_parameters():
                if "outer" in name:
                    weights.add_(torch.from_numpy(0.1 * rng.standard_normal(weights.shape)))
        typical.append(np.full(own.shape[1] * own.shape[2], -1.5, np.float32))
        flows.append(flow.requires_grad_(False))
        first += channels
    return {"typical": np.concatenate(typical)}, flows


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = features.reshape(len(features), -1, CHANNELS).astype(np.float64)
    d = flat - flat.mean(axis=0)
    covariance = np.einsum("nlc,nld->lcd", d, d) / len(d) + 1e-3 * np.eye(CHANNELS)
    return flat.mean(axis=0), covariance


_STATISTICS = {"padim": _padim, "low rank": _low_rank, "patchcore": _bank, "cflow": _cflow}
