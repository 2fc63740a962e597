"""What a bundle would hold: graphs, costs and the manifest, before anything is written."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ConfigError
from unblemish.export import differentiate
from unblemish.export.energy_plan import AutoencoderSource, EnergyPlan, energy_settings
from unblemish.export.features import open_features
from unblemish.export.flops import Cost, cost, kept_bytes
from unblemish.export.options import ExportOptions
from unblemish.export.passes import optimise
from unblemish.export.sharing.shared_files import shared_files
from unblemish.export.source import IMAGE, LATENT, LOGIT, Source
from unblemish.export.weights import weights_of

WEIGHTS = "finetune_weights.npz"
# What the values of a graph are to the runtime, by name.
_ROLES = {
    LATENT: "latent", IMAGE: "image", LOGIT: "logit", "reconstruction": "reconstruction",
    "mean": "moment", "log_variance": "moment", "log_scale": "scale",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that would be written.

    Args:
        graphs: by role, optimised, each with all of its weights; see `files_of`.
        fused: gradient of the generator in one graph, for the parity gate alone.
        costs: by role. kept: bytes held between forward and backward at batch 1.
        weights: initial weights of the fine-tuning graphs.
    """

    source: Source
    graphs: dict[GraphRole, onnx.ModelProto]
    fused: onnx.ModelProto
    costs: dict[GraphRole, Cost]
    kept: int
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def step_flops(self) -> int:
        """Arithmetic of one value-and-gradient step."""
        return self.costs["generator_forward"].flops + self.costs["generator_backward"].flops


def plan_bundle(source: Source, options: ExportOptions) -> Plan:
    """Differentiate and optimise every graph that the options ask for.

    Raises: UnsupportedOperatorError where the model has an operator without gradient rule.
    """
    generator = optimise(source.generator)
    ways = differentiate(generator, wrt=[LATENT], outputs=[IMAGE])
    graphs: dict[GraphRole, onnx.ModelProto] = {
        "generator": generator,
        "generator_forward": optimise(ways.forward),
        "generator_backward": optimise(ways.backward),
    }
    if source.encoder is not None:
        graphs["encoder"] = optimise(source.encoder)
    for stem, model in _company(source, options).items():
        there_and_back = differentiate(optimise(model), wrt=[IMAGE])
        graphs[f"{stem}_forward"] = optimise(there_and_back.forward)  # type: ignore[index]
        graphs[f"{stem}_backward"] = optimise(there_and_back.backward)  # type: ignore[index]
    weights: dict[str, NDArray[np.float32]] = {}
    if options.finetune:
        weights = _finetune(source, graphs)
    kept = [value.name for value in graphs["generator_forward"].graph.output if value.name != IMAGE]
    return Plan(
        source, graphs, optimise(ways.fused), {role: cost(g) for role, g in graphs.items()},
        kept_bytes(graphs["generator_forward"], kept), weights,
    )  # fmt: skip


def _company(source: Source, options: ExportOptions) -> dict[str, onnx.ModelProto]:
    """What is differentiated with respect to the image, by the stem of its roles."""
    layer = source.discriminator_features
    if options.discriminator_onnx is not None:
        layer = open_features(options.discriminator_onnx, source, options.discriminator_layer)
    features = None if options.features is None else open_features(options.features, source)
    named = {
        "discriminator": source.discriminator, "discriminator_features": layer,
        "features": features,
    }  # fmt: skip
    return {stem: model for stem, model in named.items() if model is not None}


def _finetune(
    source: Source, graphs: dict[GraphRole, onnx.ModelProto]
) -> dict[str, NDArray[np.float32]]:
    """Add the graphs with free weights; the weights are fed, so the graphs hold none."""
    weights = weights_of(source.trainable)
    # The trainable form itself: passes would merge weights, and change what an update means.
    ways = differentiate(source.trainable, wrt=[LATENT, *weights], outputs=[IMAGE])
    for role, model in (("finetune_forward", ways.forward), ("finetune_backward", ways.backward)):
        graphs[role] = optimise(_without(model, weights))  # type: ignore[index]
    return weights


def _without(model: onnx.ModelProto, weights: dict[str, Any]) -> onnx.ModelProto:
    fed = [t for t in model.graph.initializer if t.name in weights]
    for tensor in fed:
        model.graph.initializer.remove(tensor)
    return model


def feature_names(plan: Plan | EnergyPlan, role: GraphRole) -> list[str]:
    """Outputs of a forward graph of features that are compared, in order."""
    back: GraphRole = role.replace("_forward", "_backward")  # type: ignore[assignment]
    fed = {value.name for value in plan.graphs[back].graph.input}
    outputs = plan.graphs[role].graph.output
    return [value.name for value in outputs if f"ct_{value.name}" in fed]


def files_of(plan: Plan | EnergyPlan) -> dict[str, bytes]:
    """Name inside the bundle -> content; weights that graphs have in common stand there once."""
    files = shared_files({graph_file(role): model for role, model in plan.graphs.items()})
    if plan.weights:
        stream = io.BytesIO()
        np.savez(stream, **plan.weights)  # type: ignore[arg-type]
        files[WEIGHTS] = stream.getvalue()
    return files


def graph_file(role: str) -> str:
    """File of a graph inside the bundle."""
    return f"graphs/{role}.onnx"


def manifest_of(
    plan: Plan | EnergyPlan, path: Path, sha256: str, name: str, options: ExportOptions,
    parity: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Fields of the manifest, without the file records."""
    from unblemish import __version__

    source = plan.source
    return {
        "name": name,
        "created_by": __version__,
        "model": {
            "kind": source.kind, "latent_size": source.latent, "parameters": source.parameters,
            "source": path.name, "source_sha256": sha256,
        },
        "graphs": {role: _graph(role, plan) for role in plan.graphs},
        "finetune_weights": WEIGHTS if plan.weights else None,
        "preprocess": _preprocess(source, options),
        "parity": parity,
        **_method(plan, options),
    }  # fmt: skip


def _method(plan: Plan | EnergyPlan, options: ExportOptions) -> dict[str, Any]:
    """How the bundle is searched, and with which settings."""
    if isinstance(plan, EnergyPlan):
        return {"method": "energy", "energy": energy_settings(plan.source)}
    rgi: dict[str, Any] = {}
    if "encoder" in plan.graphs:
        rgi["start"] = "encoder"
    if "discriminator_forward" in plan.graphs:
        rgi["discriminator_weight"] = 0.1  # seed 000, section 4.1 and appendix D
    if "features_forward" in plan.graphs:
        rgi["feature_weight"] = options.feature_weight
    return {"rgi": rgi}


def _preprocess(source: Source | AutoencoderSource, options: ExportOptions) -> dict[str, Any]:
    trained = source.preprocess
    chosen = {
        name: value
        for name, value in (
            ("geometry", options.geometry), ("scale", options.scale), ("overlap", options.overlap),
        )
        if value is not None
    }  # fmt: skip
    if source.channels not in (1, 3):
        raise ConfigError(f"images must have 1 or 3 channels; the model has {source.channels}.")
    return {
        **{n: trained[n] for n in ("geometry", "scale", "overlap", "white") if n in trained},
        **chosen,
        "width": source.width, "height": source.height, "channels": source.channels,
        "low": source.low, "high": source.high,
    }  # fmt: skip


def _graph(role: GraphRole, plan: Plan | EnergyPlan) -> dict[str, Any]:
    graph = plan.graphs[role].graph
    forward, backward = role.endswith("_forward"), role.endswith("_backward")

    def role_of(name: str, output: bool) -> str:
        if name.startswith("ct_"):
            return "cotangent"
        if backward:
            return "gradient" if output else "kept"
        if name in plan.weights and not output:
            return "weight"
        if role.endswith("features_forward") and name in feature_names(plan, role):
            return "feature"
        return _ROLES.get(name, "kept" if forward else "feature")

    return {
        "file": graph_file(role),
        "inputs": [_tensor(value, role_of(value.name, False)) for value in graph.input],
        "outputs": [_tensor(value, role_of(value.name, True)) for value in graph.output],
        "flops": plan.costs[role].flops,
    }


def _tensor(value: onnx.ValueInfoProto, role: str) -> dict[str, Any]:
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "shape": [d.dim_param or d.dim_value for d in kind.shape.dim],
        "dtype": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name,
        "role": role,
    }
