"""The graphs of a bundle as TensorRT gets them: checked, in its opset, of known size if need be."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import FileRecord, Graph, GraphRole, Manifest
from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export.engines.fix_sizes import fix_pair, fix_sizes
from unblemish.export.engines.lower_opset import lower_opset
from unblemish.export.engines.operator_support import (
    SUPPORTED_VERSIONS,
    check_operators,
    operator_table,
)
from unblemish.export.engines.options import EngineOptions
from unblemish.onnx_files import read_onnx
from unblemish.runtime.backends.onnxruntime import OrtBackend

Shape = tuple[int, ...]
Ranges = dict[str, tuple[Shape, Shape, Shape]]
Version = tuple[int, int]


@dataclass(frozen=True)
class Prepared:
    """A graph for one version of TensorRT.

    Args:
        ranges: smallest, usual and largest shape of every input with a symbolic dimension.
    """

    role: GraphRole
    model: ModelProto
    ranges: Ranges = field(default_factory=dict)


def families(manifest: Manifest) -> list[tuple[GraphRole, ...]]:
    """Roles that are made into engines together: a graph alone, or forward and backward."""
    found: list[tuple[GraphRole, ...]] = []
    for role in manifest.graphs:
        name = role.removesuffix("_forward") + "_backward"
        back = next((other for other in manifest.graphs if other == name), None)
        if role.endswith("_forward") and back is not None:
            found.append((role, back))
        elif not role.endswith("_backward"):
            found.append((role,))
    return found


def prepare(
    bundle: Bundle, roles: tuple[GraphRole, ...], options: EngineOptions, version: Version
) -> list[Prepared]:
    """Make one family ready for a version of TensorRT.

    Graphs whose batch alone is open keep it open, where TensorRT takes them so. Others (images of
    any size, free weights) are made for one size and a batch of 1, since their gradients ask for
    shapes that TensorRT wants to know.

    Raises: UnsupportedOperatorError naming the node where TensorRT would refuse a graph; ModelError
        where a size cannot be told.
    """
    graphs = [read_onnx(bundle.graph(role)) for role in roles]
    record = bundle.manifest.graphs[roles[0]]
    if _is_open(record, roles[0]):
        sizes = [_sizes(bundle.manifest, record, options, n)
                 for n in (options.usual_batch, options.batch)]  # fmt: skip
        ranges = _ranges(bundle, roles, (dict.fromkeys(sizes[0], 1), *sizes))
        with contextlib.suppress(UnsupportedOperatorError):  # it may do at one size
            return _taken(roles, graphs, ranges, version)
    sizes_of_one = _sizes(bundle.manifest, record, options, 1)
    if len(graphs) == 1:
        graphs = [fix_sizes(graphs[0], sizes_of_one)]
    else:
        graphs = [*fix_pair(graphs[0], graphs[1], sizes_of_one)]
    return _taken(roles, graphs, [{} for _ in roles], version)


def _taken(
    roles: tuple[GraphRole, ...], graphs: list[ModelProto], ranges: list[Ranges], version: Version
) -> list[Prepared]:
    """Graphs in the opset of a version, checked."""
    newest = operator_table(version).opsets[1]
    prepared = []
    for role, model, known in zip(roles, graphs, ranges, strict=True):
        lowered = lower_opset(model, newest).model
        check_operators(lowered, role, [version])
        prepared.append(Prepared(role, lowered, known))
    return prepared


def check_files(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """As `check_bundle`, of the graphs of a bundle to be, which lie in `folder`.

    Args:
        files: name inside the bundle -> content.
        manifest: fields of `Manifest` without `files`.
    """
    records = {
        name: FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    checked = Manifest.model_validate({**manifest, "files": records})
    check_bundle(Bundle(folder, checked))


def check_bundle(
    bundle: Bundle,
    options: EngineOptions | None = None,
    versions: Sequence[Version] = SUPPORTED_VERSIONS,
) -> None:
    """Raise, as `prepare`, where TensorRT of one of these versions would refuse a graph."""
    options = options or EngineOptions()
    for roles in families(bundle.manifest):
        for version in versions:
            prepare(bundle, roles, options, version)


def _is_open(record: Graph, role: GraphRole) -> bool:
    """Whether no dimension but the first (the batch, or the cells of a flow) is symbolic."""
    return not role.startswith("finetune") and all(
        isinstance(d, int) for tensor in record.inputs for d in tensor.shape[1:]
    )


def _sizes(manifest: Manifest, record: Graph, options: EngineOptions, batch: int) -> dict[str, int]:
    """Length of every symbolic dimension of a graph's inputs."""
    p = manifest.preprocess
    height, width = options.size or (p.height, p.width)
    cells = _cells(manifest, height, width)
    sizes: dict[str, int] = {}
    for tensor in record.inputs:
        for axis, name in enumerate(tensor.shape):
            if isinstance(name, str):
                image = tensor.role in ("image", "mask") and len(tensor.shape) == 4
                spatial = {2: height, 3: width}.get(axis) if image else None
                length = spatial or (cells.get(name, 1) * batch if axis == 0 else None)
                if length is None:
                    raise ModelError(
                        f"the length of axis {axis} of input '{tensor.name}' is not known, and an "
                        "engine is built for known sizes. Export the model with a fixed one."
                    )
                sizes[name] = max(length, sizes.get(name, 0))
    return sizes


def _cells(manifest: Manifest, height: int, width: int) -> dict[str, int]:
    """Cells of the maps of an image, by the symbol that CFLOW-AD's graphs have for them."""
    detector = manifest.detector
    maps = () if detector is None else detector.maps
    return {
        f"cells_{k}": math.ceil(height / m.stride) * math.ceil(width / m.stride)
        for k, m in enumerate(maps)
    }


def _ranges(
    bundle: Bundle, roles: tuple[GraphRole, ...], sizes: tuple[dict[str, int], ...]
) -> list[Ranges]:
    """Shapes of the inputs of a family, at the smallest, usual and largest sizes.

    Where shape inference did not know what the forward graph hands over to its way back, that graph
    says it by running, on zeros in ONNX Runtime.
    """
    runs = [_run(bundle, roles[0], known, full=len(roles) > 1) for known in sizes]
    found = []
    for role in roles:
        inputs = bundle.manifest.graphs[role].inputs
        least, usual, most = (
            {t.name: shapes[t.name.removeprefix("ct_")] for t in inputs} for shapes in runs
        )
        found.append({
            t.name: (least[t.name], usual[t.name], most[t.name])
            for t in inputs if any(isinstance(d, str) for d in t.shape)
        })  # fmt: skip
    return found


def _run(bundle: Bundle, role: GraphRole, sizes: dict[str, int], full: bool) -> dict[str, Shape]:
    """Shapes of inputs and, where `full`, outputs of a graph at these sizes."""
    record = bundle.manifest.graphs[role]
    tensors = (*record.inputs, *(record.outputs if full else ()))
    if all(isinstance(d, int) or d in sizes for t in tensors for d in t.shape):
        return {t.name: _at(t.shape, sizes) for t in tensors}
    feeds: dict[str, NDArray[Any]] = {
        t.name: np.zeros(_at(t.shape, sizes), t.dtype) for t in record.inputs
    }
    results = OrtBackend().program(str(bundle.graph(role))).run(feeds)
    return {name: array.shape for name, array in {**feeds, **results}.items()}


def _at(shape: Sequence[int | str], sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes[d] if isinstance(d, str) else d for d in shape)
