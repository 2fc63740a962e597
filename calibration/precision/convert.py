"""A bundle in another precision: its graphs rewritten, measured against float32, then written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from unblemish.bundle import Bundle, write_bundle
from unblemish.bundle.manifest import Graph, GraphRole, Tensor
from unblemish.calibration.normals import SyntheticSet, choose_normals
from unblemish.calibration.precision.gate import TOLERANCES, Drift, Judged, Sample, Tolerance
from unblemish.calibration.precision.record import Feeds, RecordingBackend
from unblemish.errors import ConfigError, ModelError
from unblemish.export.passes.result import PassResult
from unblemish.export.precision.graphs import emulated, half_graphs
from unblemish.export.precision.modelopt import require_modelopt
from unblemish.export.precision.quantise import quantise
from unblemish.export.sharing.share_weights import FILE_NAME
from unblemish.export.sharing.shared_files import shared_files
from unblemish.images import read_image
from unblemish.onnx_files import read_onnx
from unblemish.runtime.backends import open_backend
from unblemish.runtime.frames import to_unit, white_for
from unblemish.runtime.inspector import Inspector

FLOAT32_ROLES = frozenset({
    "generator", "finetune_forward", "finetune_backward", "inpainter", "flow", "flow_forward",
    "flow_backward",
})  # fmt: skip
"""What stays float32: masters for fine-tuning, the user's own graph, log-likelihoods."""
IMAGES, NORMALS = 24, 16
_ENGINES = "engines/"  # made of the float32 graphs, so not of these
Say = Callable[[str], None]
Quantise = Callable[[ModelProto, list[Feeds]], PassResult]


@dataclass(frozen=True)
class Converted:
    """The bundle written, and what the precision costs."""

    bundle: Bundle
    drift: Drift


def convert_precision(
    bundle: Bundle,
    precision: str,
    normals: str | Path,
    out: str | Path,
    *,
    images: int = IMAGES,
    biases: bool = True,
    quantiser: str = "onnxruntime",
    seed: int = 0,
    tolerance: Tolerance | None = None,
    say: Say = lambda line: None,
) -> Converted:
    """Write a float32 bundle in another precision; a calibration stays as it is.

    Gradients of an int8 bundle are those of the unquantised graph at the quantised activations
    (straight-through), in float32.

    Args:
        precision: 'fp16', 'bf16' or 'int8'.
        normals: folder of at least 10 normal images, of which up to 32 are drawn: one half for
            the gate, the other for int8 ranges.
        out: folder of the new bundle, which may be that of the old one.
        images: number of synthetic defects that the gate inspects, beside normal ones.
        biases, quantiser: int8 alone, see `quantise`; biases are False for TensorRT.
        tolerance: None for `TOLERANCES`.
        say: told what goes on.
    Raises: ConfigError where the bundle is not float32; ModelError where a figure of the gate is
        beyond its tolerance; otherwise as `choose_normals` and `write_bundle`. Nothing is written.
    """
    if precision not in TOLERANCES or bundle.manifest.precision != "fp32":
        raise ConfigError(
            f"bundle {bundle.path} is {bundle.manifest.precision} and cannot be made "
            f"'{precision}': a float32 bundle can be made {', '.join(TOLERANCES)}. Export the "
            "model again."
        )
    if quantiser == "modelopt":
        require_modelopt()
    samples, plain = _samples(bundle, normals, images, seed)
    graphs = {role: read_onnx(bundle.graph(role)) for role in _in_order(bundle.manifest.graphs)}
    say(f"float32: searching {len(samples)} frames")
    judged = Judged(bundle, samples)
    by = partial(quantise, biases=biases, by=quantiser)
    made = _rewritten(bundle, graphs, precision, plain, by, say)
    say(f"{precision}: searching {len(samples)} frames")
    with tempfile.TemporaryDirectory(prefix="unblemish-", ignore_cleanup_errors=True) as folder:
        trial = Path(folder) / "trial.bundle"
        drift = judged.drift(_written(bundle, emulated(made, precision), "fp32", trial, {}))
    drift.check(precision, tolerance or TOLERANCES[precision])
    figures = drift.figures(precision)
    return Converted(_written(bundle, made, precision, Path(out), figures), drift)


def _samples(
    bundle: Bundle, normals: str | Path, images: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """The frames of the gate, normal and defective, and normal ones that the gate does not see."""
    manifest = bundle.manifest
    stated, polarity = manifest.preprocess.white, manifest.rgi.polarity
    if images < 1:
        raise ConfigError(f"the gate needs at least 1 synthetic defect; got {images}.")
    chosen = choose_normals(normals, most=2 * NORMALS, seed=seed, stated=stated)

    def unit(frame: Any) -> Any:
        return to_unit(frame, white=white_for(frame, None, stated))

    tested, other = (
        [Sample(unit(read_image(path)), None) for path in chosen.paths[first::2]]
        for first in (0, 1)
    )
    seen = replace(chosen, paths=chosen.paths[::2])
    pasted = SyntheticSet(seen, images, seed, None, polarity, stated)
    return [*tested, *(Sample(unit(d.image), d.mask) for d in pasted)], other


def _in_order(graphs: Mapping[GraphRole, Graph]) -> list[GraphRole]:
    """Forward graphs before their way back, whose types and weights follow theirs."""
    return sorted(graphs, key=lambda role: role.endswith("_backward"))


def _rewritten(
    bundle: Bundle,
    graphs: Mapping[GraphRole, ModelProto],
    precision: str,
    plain: Sequence[Sample],
    place: Quantise,
    say: Say,
) -> dict[GraphRole, ModelProto]:
    chosen = {role: model for role, model in graphs.items() if role not in FLOAT32_ROLES}
    if precision != "int8":
        return {**graphs, **half_graphs(chosen, precision)}
    say(f"int8: ranges from {len(plain)} normal images")
    tapes = record(bundle, plain)
    made, changed = dict(graphs), 0
    for role, model in chosen.items():
        if not role.endswith("_backward"):
            result = place(model, feeds_of(tapes, role, model))
            made[role], changed = result.model, changed + result.changed
            say(f"int8: {result.changed} operators of {role}")
    if not changed:
        raise ModelError(
            f"nothing in bundle {bundle.path} can be int8: its graphs have no convolution or "
            "matrix product between their first and their last. Nothing was written. Export with "
            "--precision fp16."
        )
    return made


def record(bundle: Bundle, plain: Sequence[Sample]) -> dict[GraphRole, list[Feeds]]:
    """What goes into every graph while normal frames are searched in float32."""
    backend = RecordingBackend(open_backend("onnxruntime"))
    with Inspector.open(bundle, backend=backend) as inspector:
        for sample in plain:
            inspector.search(sample.frame)
    found = {role: backend.tapes.get(bundle.graph(role)) for role in bundle.manifest.graphs}
    return {role: tape.feeds for role, tape in found.items() if tape is not None and tape.feeds}


def feeds_of(
    tapes: Mapping[GraphRole, list[Feeds]], role: GraphRole, model: ModelProto
) -> list[Feeds]:
    """Feeds of a graph, else of another graph of the same model: plain and forward read alike."""
    names = {value.name for value in model.graph.input}
    stem = role.removesuffix("_forward")
    alike = [other for other in tapes if other.removesuffix("_forward") == stem]
    own = tapes.get(role) or [feed for other in alike for feed in tapes[other]]
    return [{name: feed[name] for name in names} for feed in own if names <= set(feed)]


def _written(
    bundle: Bundle,
    graphs: Mapping[GraphRole, ModelProto],
    precision: str,
    out: Path,
    figures: Mapping[str, float],
) -> Bundle:
    records = bundle.manifest.graphs
    files = shared_files({_file(role): model for role, model in graphs.items()})
    old = {record.file for record in records.values()}
    kept = {
        name: bundle.file(name)
        for name in bundle.manifest.files
        if name not in old and Path(name).name != FILE_NAME and not name.startswith(_ENGINES)
    }
    manifest = {
        **bundle.manifest.model_dump(exclude={"files", "engines"}),
        "precision": precision,
        "graphs": {role: _typed(records[role], role, graphs[role]) for role in records},
        "parity": {**bundle.manifest.parity, **figures},
    }
    return write_bundle(out, {**kept, **files}, manifest)


def _file(role: GraphRole) -> str:
    """One file a role: graphs that were one need not be so in another precision."""
    return f"graphs/{role}.onnx"


def _typed(record: Graph, role: GraphRole, model: ModelProto) -> Graph:
    """The record of the rewritten graph, with the element types of its inputs and outputs."""
    types = {
        value.name: np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
        for value in (*model.graph.input, *model.graph.output)
    }

    def typed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t.model_copy(update={"dtype": types.get(t.name, t.dtype)}) for t in tensors)

    return record.model_copy(
        update={
            "file": _file(role),
            "inputs": typed(record.inputs),
            "outputs": typed(record.outputs),
        }
    )
