"""The graphs of a bundle as TensorRT gets them: checked, in its opset, of known size if need be."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import FileRecord, Graph, GraphRole, Manifest, Tensor
from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export.engines.fix_sizes import fix_pair, fix_sizes
from unblemish.export.engines.lower_opset import lower_opset
from unblemish.export.engines.open_batch import BATCHES, open_batch
from unblemish.export.engines.operator_support import (
    SUPPORTED_VERSIONS,
    check_operators,
    operator_table,
)
from unblemish.export.engines.options import EngineOptions
from unblemish.onnx_files import read_onnx
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.crops import BATCH_PIXELS, Size, crop_sizes

Shape = tuple[int, ...]
Ranges = dict[str, tuple[Shape, Shape, Shape]]
Graphed = tuple[ModelProto, Ranges]
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


@dataclass(frozen=True)
class Family:
    """Graphs that are made into engines together, and what TensorRT may be given of them.

    Args:
        roles: a graph alone, or forward and backward.
        size: (height, width) of images, where they have any size, see `sizes_of`; None elsewhere.
    """

    bundle: Bundle
    roles: tuple[GraphRole, ...]
    options: EngineOptions
    size: Size | None = None

    def prepare(self, version: Version) -> list[Prepared]:
        """Make the graphs ready for a version of TensorRT.

        Graphs whose batch alone is open stay as they are, where TensorRT takes them so. Of others
        (images of any size, free weights) all lengths are fixed, since their gradients ask for
        shapes that TensorRT wants to know; the batch alone stays open, where they do not depend on
        it. What is refused so is made for a batch of 1.

        Raises: UnsupportedOperatorError naming the node where TensorRT would refuse a graph;
            ModelError where a size cannot be told.
        """
        for graphs in self._of_any_batch():
            with contextlib.suppress(UnsupportedOperatorError):
                return self._taken(graphs, version)
        return self._taken(self._of_one_image, version)

    def _of_any_batch(self) -> Iterator[list[Graphed]]:
        if self._is_open:
            yield self._as_it_is
        if self._of_one_size is not None:
            yield self._of_one_size

    def _taken(self, graphs: Sequence[Graphed], version: Version) -> list[Prepared]:
        """Graphs in the opset of a version, checked."""
        newest = operator_table(version).opsets[1]
        prepared = []
        for role, (model, ranges) in zip(self.roles, graphs, strict=True):
            lowered = lower_opset(model, newest).model
            check_operators(lowered, role, [version])
            prepared.append(Prepared(role, lowered, ranges))
        return prepared

    @property
    def _is_open(self) -> bool:
        """Whether no dimension but the first (the batch, or the cells of a flow) is symbolic."""
        return not self.roles[0].startswith("finetune") and all(
            isinstance(d, int) for tensor in self._record.inputs for d in tensor.shape[1:]
        )

    @property
    def _record(self) -> Graph:
        return self.bundle.manifest.graphs[self.roles[0]]

    @property
    def _sides(self) -> Size:
        p = self.bundle.manifest.preprocess
        return self.size or (p.height, p.width)

    @cached_property
    def _graphs(self) -> list[ModelProto]:
        return [read_onnx(self.bundle.graph(role)) for role in self.roles]

    @cached_property
    def _as_it_is(self) -> list[Graphed]:
        counts = (self.options.usual_batch, self.options.batch)
        sizes = [self._sizes(count) for count in counts]
        ranges = _ranges(self.bundle, self.roles, (dict.fromkeys(sizes[0], 1), *sizes))
        return [*zip(self._graphs, ranges, strict=True)]

    @cached_property
    def _of_one_size(self) -> list[Graphed] | None:
        """None where the graphs depend on the batch."""
        opened = [open_batch(*ways) for ways in zip(*map(self._fixed, BATCHES), strict=True)]
        height, width = self._sides
        crops = BATCH_PIXELS // (height * width) if _is_cropped(self.roles) else 1
        batches = 1, self.options.usual_batch, max(self.options.batch, crops)
        graphs = [(one[0], _at_batches(one[1], batches)) for one in opened if one is not None]
        return graphs if len(graphs) == len(self.roles) else None

    @cached_property
    def _of_one_image(self) -> list[Graphed]:
        return [(model, {}) for model in self._fixed(1)]

    def _fixed(self, batch: int) -> list[ModelProto]:
        sizes = self._sizes(batch)
        if len(self._graphs) == 1:
            return [fix_sizes(self._graphs[0], sizes)]
        return [*fix_pair(self._graphs[0], self._graphs[1], sizes)]

    def _sizes(self, batch: int) -> dict[str, int]:
        """Length of every symbolic dimension of the inputs."""
        height, width = self._sides
        cells = _cells(self.bundle.manifest, height, width)
        sizes: dict[str, int] = {}
        for tensor in self._record.inputs:
            for axis, name in enumerate(tensor.shape):
                if isinstance(name, str):
                    spatial = {2: height, 3: width}.get(axis) if _is_image(tensor) else None
                    length = spatial or (cells.get(name, 1) * batch if axis == 0 else None)
                    if length is None:
                        raise ModelError(
                            f"the length of axis {axis} of input '{tensor.name}' is not known, and "
                            "an engine is built for known sizes. Export the model with a fixed one."
                        )
                    sizes[name] = max(length, sizes.get(name, 0))
        return sizes


def sizes_of(
    manifest: Manifest, roles: tuple[GraphRole, ...], options: EngineOptions
) -> tuple[Size | None, ...]:
    """Sizes of images that a family is built for; (None,) where its graphs state theirs."""
    inputs = manifest.graphs[roles[0]].inputs
    if not any(isinstance(d, str) for t in inputs if _is_image(t) for d in t.shape[2:]):
        return (None,)
    p, detector = manifest.preprocess, manifest.detector
    if options.sizes or detector is None or not _is_cropped(roles):
        return options.sizes or ((p.height, p.width),)
    return crop_sizes(p.height, p.width, detector.align)


def _is_cropped(roles: tuple[GraphRole, ...]) -> bool:
    """Whether a search looks at crops by these graphs, as many at once as `BATCH_PIXELS` holds."""
    return roles[0].startswith("features")


def _is_image(tensor: Tensor) -> bool:
    return tensor.role in ("image", "mask") and len(tensor.shape) == 4


def _at_batches(known: Mapping[str, Shape], batches: tuple[int, int, int]) -> Ranges:
    least, usual, most = batches
    return {
        name: ((first * least, *rest), (first * usual, *rest), (first * most, *rest))
        for name, (first, *rest) in known.items()
    }


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
    """Raise, as `Family.prepare`, where TensorRT of one of these versions would refuse a graph.

    Of images of any size the first of `sizes_of` stands for all: the operators are the same.
    """
    options = options or EngineOptions()
    for roles in families(bundle.manifest):
        family = Family(bundle, roles, options, sizes_of(bundle.manifest, roles, options)[0])
        for version in versions:
            family.prepare(version)


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
