"""A detector's inspections stage by stage, and its passes by the size of the crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from unblemish.bundle import Bundle
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.crops import Box
from unblemish.runtime.detectors.crops import CropCells, FeatureCrops
from unblemish.runtime.detectors.load import Detector, load_detector
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.profiling.stages import Read
from unblemish.runtime.profiling.timing import Times
from unblemish.runtime.solvers.protocol import Float

_OUTLINE = ("start", "search", "assemble")
_LEAST_ROUNDS = 3
_SIDES = (0.25, 0.5, 0.75, 1.0)  # of the model image


@dataclass(frozen=True)
class CropTimes:
    """One crop.

    Args:
        width, height: model px.
        compare: features and scores of one version of the crop, which a compared mask costs.
        step: the same and their gradient by the pixels, which a step of descent costs.
    """

    width: int
    height: int
    compare: Times
    step: Times


def profile_inspections(
    inspector: Inspector, images: Sequence[Read], *, seconds: float
) -> dict[str, Times]:
    """Inspect the images over and over for about `seconds`, and return the time of each stage.

    'detect' is the detector's own map; 'start', 'search' and 'assemble' are those of F2PAD and
    'outline' what scoring takes beyond; 'image' is the sum. The first inspection is not counted.

    Args:
        images: functions that read and return a frame; at least one.
    """
    _inspect(inspector, images[0])
    rows: list[dict[str, float]] = []
    until = perf_counter() + seconds
    while len(rows) < max(_LEAST_ROUNDS, len(images)) or perf_counter() < until:
        rows.append(_inspect(inspector, images[len(rows) % len(images)]))
    return {name: Times.of([row[name] for row in rows]) for name in rows[0]}


def _inspect(inspector: Inspector, read: Read) -> dict[str, float]:
    decided = inspector.bundle.manifest.calibration is not None
    began = perf_counter()
    frame = read()
    decoded = perf_counter()
    timings = (inspector.inspect(frame) if decided else inspector.search(frame)).timings
    done = perf_counter()
    parts = {name: timings.get(name, 0.0) for name in _OUTLINE}
    return {
        "decode": 1e3 * (decoded - began),
        "preprocess": timings["preprocess"],
        "detect": timings["detect"],
        **parts,
        "outline": max(0.0, timings["outline"] - sum(parts.values())),
        "post": timings.get("decide", 0.0),
        "image": 1e3 * (done - began),
    }


def profile_crops(
    bundle: Bundle,
    *,
    backend: str = "auto",
    threads: int | None = None,
    seconds: float = 5.0,
    kernels: Kernels | None = None,
) -> tuple[CropTimes, ...]:
    """Time passes over crops of growing size up to the model image, by turns, of random pixels.

    Raises: BundleError, BackendError or MissingDependencyError where a graph or engine is missing.
    """
    detector = load_detector(
        bundle, open_backend(backend, threads, bundle=bundle), kernels or default_kernels(threads)
    )
    p = bundle.manifest.preprocess
    random = np.random.default_rng(0)
    image = random.uniform(p.low, p.high, (1, p.channels, p.height, p.width)).astype(np.float32)
    crops = [_Crop(detector, image, box) for box in _boxes(detector.record.align, image)]
    rows: list[list[tuple[float, float]]] = [[crop.once() for crop in crops]]
    until = perf_counter() + seconds
    while len(rows) <= _LEAST_ROUNDS or perf_counter() < until:
        rows.append([crop.once() for crop in crops])
    return tuple(
        CropTimes(crop.box.width, crop.box.height, *(Times.of([1e3 * t for t in part]) for part in
                  zip(*(row[number] for row in rows[1:]), strict=True)))
        for number, crop in enumerate(crops)
    )  # fmt: skip


def _boxes(align: int, image: Float) -> list[Box]:
    height, width = image.shape[2:]
    sizes = [
        tuple(max(int(share * side) // align, 1) * align for side in (height, width))
        for share in _SIDES
    ]
    return [Box(0, 0, h, w) for h, w in dict.fromkeys(sizes)]


class _Crop:
    def __init__(self, detector: Detector, image: Float, box: Box) -> None:
        self.box = box
        width = image.shape[3] // detector.record.stride
        self._crop = np.ascontiguousarray(image[(slice(None), slice(None), *box.slices)])
        whole = np.array(detector.features(image)[0])
        self._cells = CropCells(detector, self._crop, whole, box, width)
        counted = np.ones((1, *(side // detector.record.stride for side in self._crop.shape[2:])))
        self._scores = FeatureCrops(
            detector, self._crop, [whole], [box], counted.astype(np.bool_), width
        )

    def once(self) -> tuple[float, float]:
        """Seconds of a comparison and of a step."""
        began = perf_counter()
        self._cells.scores(self._cells.features(self._crop))
        between = perf_counter()
        self._scores.evaluate(self._crop, np.zeros(1, np.intp))
        return between - began, perf_counter() - between
