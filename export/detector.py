"""From a feature graph and fitted statistics to a bundle that detects."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unblemish.bundle import Bundle, write_bundle
from unblemish.bundle.manifest import FeatureMap, GraphRole, Mixture
from unblemish.errors import ModelError
from unblemish.export.feature_graph import FEATURES, IMAGE, FeatureGraph
from unblemish.export.flops import cost
from unblemish.export.flow_graph import check_flow, flow_graphs, flow_model, with_cells
from unblemish.export.inpainter import check_inpainter, open_inpainter
from unblemish.files import sha256_of

if TYPE_CHECKING:
    from unblemish.export.models.flow import ConditionalFlow

Array = NDArray[Any]
FORWARD_TOLERANCE = 1e-4  # of the largest feature
GRADIENT_TOLERANCE = 1e-3  # relative, l2; ReLUs at their kink may take the other side
# A cell reaches further than its image is wide: the second size shows that none is baked in.
_CHECKED = (4, 7)  # sides, in multiples of `align`


def detector_graphs(model: onnx.ModelProto) -> dict[GraphRole, onnx.ModelProto]:
    """The extractor and its gradient with respect to the image, optimised."""
    from unblemish.export import differentiate
    from unblemish.export.passes import optimise

    outputs = [value.name for value in model.graph.output]
    ways = differentiate(model, wrt=[IMAGE], outputs=outputs)
    return {
        "features": model,
        "features_forward": optimise(ways.forward),
        "features_backward": optimise(ways.backward),
    }


def write_detector_bundle(
    out: Path,
    *,
    graph: FeatureGraph,
    method: str,
    statistics: Mapping[str, Array],
    mixtures: Sequence[Mixture],
    preprocess: Mapping[str, Any],
    normals: int,
    seed: int,
    source: Path,
    name: str,
    f2pad: Mapping[str, Any] | None = None,
    flows: Sequence[ConditionalFlow] = (),
    inpainter: Path | None = None,
    smoothing: float | None = None,
) -> Bundle:
    """Differentiate, check against the network, and write; nothing is written where a check fails.

    Args:
        statistics: name -> array, see the fitters.
        source: the weights, recorded by name and hash.
        f2pad: settings other than the defaults.
        flows: CFLOW-AD: of every map of the graph, in float32, without gradients.
        inpainter: an ONNX file, see `open_inpainter`; None for the classical one.
        smoothing: Gaussian on the plain map, model px; None for the manifest's own.
    Raises: ModelError where a graph strays from the network, or the inpainter does not fit;
        BundleError where `out` cannot be written.
    """
    from unblemish import __version__
    from unblemish.export.sharing.shared_files import shared_files, written

    graphs = detector_graphs(graph.model)
    records = _records(graphs, graph.camera, preprocess)
    if flows:
        more = flow_graphs(flow_model(flows))
        records |= _flow_records(more, [f.grid[0] * f.grid[1] for f in flows])
        graphs |= more
    if inpainter is not None:
        graphs["inpainter"] = open_inpainter(inpainter)
        records["inpainter"] = _record(
            "inpainter", graphs["inpainter"], cost(graphs["inpainter"]).flops
        )
    files = shared_files({_file(role): model for role, model in graphs.items()})
    with written(files) as folder:
        paths = {role: folder / _file(role) for role in graphs}
        parity = check_detector(graph, paths, seed)
        if flows:
            parity |= check_flow(flows, paths, seed)
        if inpainter is not None:
            check_inpainter(paths["inpainter"], inpainter.name)
    arrays = {f"statistics/{key}.npy": _npy(value) for key, value in statistics.items()}
    manifest = {
        "name": name,
        "created_by": __version__,
        "method": method,
        "model": {
            "kind": graph.backbone, "latent_size": 0, "parameters": graph.parameters,
            "source": source.name, "source_sha256": sha256_of(source),
        },
        "graphs": records,
        "preprocess": dict(preprocess),
        "detector": {
            "backbone": graph.backbone, "layers": graph.layers, "stride": graph.stride,
            "align": graph.align, "reach": graph.reach, "channels": graph.channels,
            "maps": [FeatureMap(channels=c, stride=s).model_dump() for c, s in graph.maps],
            "statistics": {key: f"statistics/{key}.npy" for key in statistics},
            "mixtures": [mixture.model_dump() for mixture in mixtures],
            "normals": normals, "seed": seed,
            **({} if smoothing is None else {"smoothing_sigma": smoothing}),
        },
        "f2pad": dict(f2pad or {}),
        "parity": parity,
    }  # fmt: skip
    return write_bundle(out, {**files, **arrays}, manifest)


def check_detector(
    graph: FeatureGraph, paths: Mapping[GraphRole, Path], seed: int
) -> dict[str, float]:
    """Compare the graphs as shipped with the network in torch, values and gradients, at two sizes.

    Where there is no torch network, torch runs the graph node by node and gives its own gradient.
    Returns: figure -> largest difference. Raises: ModelError naming the one out of tolerance.
    """
    from unblemish.runtime.backends.onnxruntime import OrtBackend

    engine = OrtBackend()
    plain = engine.program(str(paths["features"]))
    pair = engine.pair(str(paths["features_forward"]), str(paths["features_backward"]))
    rng = np.random.default_rng(seed)
    figures = {"features": 0.0, "gradient": 0.0}
    for multiple in _CHECKED:
        side = multiple * graph.align
        image = rng.random((2, graph.camera, side, side), dtype=np.float32)
        found = {k: v.copy() for k, v in pair.forward({IMAGE: image}).items()}[FEATURES]
        cotangent = rng.standard_normal(found.shape).astype(np.float32)
        gradient = np.array(pair.backward({FEATURES: cotangent})[IMAGE])
        same = np.asarray(plain.run({IMAGE: image})[FEATURES])
        expected, slope = _oracle(graph, image, cotangent)
        scale = max(float(np.abs(expected).max()), 1e-6)
        difference = max(np.abs(found - expected).max(), np.abs(same - expected).max()) / scale
        figures["features"] = max(figures["features"], float(difference))
        off = np.linalg.norm(gradient - slope) / max(float(np.linalg.norm(slope)), 1e-12)
        figures["gradient"] = max(figures["gradient"], float(off))
    for key, limit in (("features", FORWARD_TOLERANCE), ("gradient", GRADIENT_TOLERANCE)):
        if not figures[key] <= limit:
            raise ModelError(
                f"the exported graph strays from the network: {key} by {figures[key]:.2e}, allowed "
                f"{limit:.0e}. Nothing was written; please report the network."
            )
    return figures


def _oracle(graph: FeatureGraph, image: Array, cotangent: Array) -> tuple[Array, Array]:
    """Features and gradient by torch in float32."""
    import torch

    oracle = graph.oracle or graph_in_torch(graph.model)
    x = torch.from_numpy(image.copy()).requires_grad_()
    features = oracle(x)
    (gradient,) = torch.autograd.grad(features, x, torch.from_numpy(cotangent))
    return features.detach().numpy(), gradient.numpy()


def graph_in_torch(model: onnx.ModelProto) -> Callable[[Any], Any]:
    """Features of images by the graph run node by node in torch."""
    from unblemish.runtime.backends.torch_graph import TorchGraph

    network = TorchGraph(model).requires_grad_(False)
    return lambda image: network(image=image)[FEATURES]


def _file(role: str) -> str:
    return f"graphs/{role}.onnx"


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array))
    return stream.getvalue()


def _records(
    graphs: Mapping[GraphRole, onnx.ModelProto], camera: int, preprocess: Mapping[str, Any]
) -> dict[str, Any]:
    """Manifest records; the arithmetic is that of a whole model image."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graphs["features"])
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name == IMAGE:
            sizes = (camera, preprocess["height"], preprocess["width"])
            for dim, size in zip(value.type.tensor_type.shape.dim[1:], sizes, strict=True):
                dim.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    sized = detector_graphs(onnx.shape_inference.infer_shapes(fixed))
    return {role: _record(role, graphs[role], cost(sized[role]).flops) for role in graphs}


def _flow_records(
    graphs: Mapping[GraphRole, onnx.ModelProto], cells: Sequence[int]
) -> dict[str, Any]:
    """Manifest records; the arithmetic is that of all cells of a model image."""
    sized = flow_graphs(with_cells(graphs["flow"], cells))
    return {role: _record(role, graphs[role], cost(sized[role]).flops) for role in graphs}


def _record(role: str, model: onnx.ModelProto, flops: int) -> dict[str, Any]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return {
        "file": _file(role),
        "inputs": [_tensor(value, role, output=False) for value in inputs],
        "outputs": [_tensor(value, role, output=True) for value in model.graph.output],
        "flops": flops,
    }


def _tensor(value: onnx.ValueInfoProto, role: str, *, output: bool) -> dict[str, Any]:
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "shape": [d.dim_value or d.dim_param or "?" for d in kind.shape.dim],
        "dtype": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name,
        "role": _role(value.name, role, output),
    }


def _role(name: str, role: str, output: bool) -> str:
    if name == IMAGE or (role == "inpainter" and output):
        return "image"
    if role == "inpainter":
        return "mask"
    if name.startswith("ct_"):
        return "cotangent"
    if name.startswith("position_"):
        return "position"
    if name.startswith("likelihood_"):
        return "likelihood"
    if role.endswith("_backward") and output:
        return "gradient"
    return "feature" if name.startswith(FEATURES) else "kept"
