"""Normal images as training sees them: the preprocessing of inspection, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.split import draw
from unblemish.calibration.training.options import TrainOptions
from unblemish.errors import SourceError
from unblemish.images import list_images, read_image
from unblemish.runtime.frames import to_channels, to_unit
from unblemish.runtime.geometry import Geometry, resize

Half = NDArray[np.float16]
Float = NDArray[np.float32]

CACHE_BYTES = 2 << 30
MODEL_LOW, MODEL_HIGH = -1.0, 1.0


@dataclass
class Normals:
    """Training and held-back images.

    Args:
        preprocess: frame -> model image.
        train: files to train on; `held_back` those kept out.
        broken: file -> why it could not be read.
    """

    preprocess: Preprocess
    train: list[Path]
    held_back: list[Path]
    broken: dict[Path, str] = field(default_factory=dict)
    _cache: dict[Path, Half] = field(default_factory=dict)
    _bytes: int = 0

    def batch(self, count: int, rng: np.random.Generator) -> Float:
        """Draw `count` images; of tiles, windows at random places.

        Returns: (count, C, size, size) float32 in [-1, 1].
        """
        return self._windows(rng.integers(len(self.train), size=count), rng)

    def originals(self, count: int, part: int = 16) -> Iterator[Float]:
        """Training images as they are, at most `count`, in parts; of tiles `count` windows.

        The same in every call. Yields: (<= part, C, size, size) float32 in [-1, 1].
        """
        rng = np.random.default_rng([len(self.train), count])
        chosen = rng.permutation(len(self.train))
        tiled = self.preprocess.geometry == "tiles"
        chosen = np.resize(chosen, count) if tiled else np.sort(chosen[:count])
        for start in range(0, len(chosen), part):
            yield self._windows(chosen[start : start + part], rng)

    def _windows(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> Float:
        side = self.preprocess.width
        out = np.empty((len(chosen), self.preprocess.channels, side, side), np.float32)
        for row, index in enumerate(chosen):
            image = self._prepared(self.train[index])
            top, left = (int(rng.integers(extent - side + 1)) for extent in image.shape[1:])
            out[row] = image[:, top : top + side, left : left + side]
        return out * np.float32(MODEL_HIGH - MODEL_LOW) + np.float32(MODEL_LOW)

    def examples(self, count: int) -> Float:
        """The first `count` held-back images (training images where none are held back).

        Returns: (<= count, C, size, size) float32 in [-1, 1]; of tiles, the middle ones.
        """
        side = self.preprocess.width
        rows = []
        for path in (self.held_back or self.train)[:count]:
            image = self._prepared(path)
            top, left = ((extent - side) // 2 for extent in image.shape[1:])
            rows.append(image[:, top : top + side, left : left + side].astype(np.float32))
        return np.stack(rows) * np.float32(MODEL_HIGH - MODEL_LOW) + np.float32(MODEL_LOW)

    def _prepared(self, path: Path) -> Half:
        found = self._cache.get(path)
        if found is None:
            found = prepare(read_image(path), self.preprocess)
            if self._bytes + found.nbytes <= CACHE_BYTES:
                self._cache[path] = found
                self._bytes += found.nbytes
        return found


def prepare(frame: NDArray[Any], preprocess: Preprocess) -> Half:
    """Bring a frame to unit intensities at the model's scale.

    Returns: (C, size, size) float16 in [0, 1]; for tiles (C, >= size, >= size), the whole frame.
    """
    unit = to_channels(to_unit(frame, white=preprocess.white), preprocess.channels)
    if preprocess.geometry != "tiles":
        geometry = Geometry(preprocess.model_copy(update={"low": 0.0, "high": 1.0}))
        fitted: Half = geometry.unit_to_model(unit)[0].astype(np.float16)
        return fitted
    height, width = (max(round(extent * preprocess.scale), 1) for extent in unit.shape[:2])
    scaled = resize(unit, height, width)
    missing = [(0, max(preprocess.width - extent, 0)) for extent in (height, width)]
    padded = np.pad(scaled, (*missing, (0, 0)), mode="edge")
    return np.ascontiguousarray(padded.transpose(2, 0, 1), np.float16)


def open_normals(folder: Path, options: TrainOptions) -> Normals:
    """List, check and split the images of a folder.

    Every file is decoded once, so that a broken one is known before training and not in its middle.
    Raises: SourceError where the folder has no image that can be read.
    """
    good: list[Path] = []
    broken: dict[Path, str] = {}
    normals: Normals | None = None
    for path in list_images(folder):
        try:
            frame = read_image(path)
            if normals is None:
                normals = Normals(_preprocess(frame, options), [], [], broken)
            image = prepare(frame, normals.preprocess)
        except SourceError as error:
            broken[path] = str(error)
            continue
        good.append(path)
        if normals._bytes + image.nbytes <= CACHE_BYTES:
            normals._cache[path] = image
            normals._bytes += image.nbytes
    if normals is None:
        raise SourceError(
            f"none of the {len(broken)} images in {folder} can be read. The first: "
            f"{next(iter(broken.values()))}"
        )
    normals.train, normals.held_back = _split(good, options)
    return normals


def _preprocess(frame: NDArray[Any], options: TrainOptions) -> Preprocess:
    channels = options.channels or (1 if frame.ndim == 2 or frame.shape[2] == 1 else 3)
    return Preprocess.model_validate(
        {
            "width": options.size, "height": options.size, "channels": channels,
            "low": MODEL_LOW, "high": MODEL_HIGH,
            "geometry": options.geometry, "scale": options.scale, "white": options.white,
        }
    )  # fmt: skip


def _split(paths: list[Path], options: TrainOptions) -> tuple[list[Path], list[Path]]:
    held = set(draw(paths, options.held_back, options.seed))
    return [path for path in paths if path not in held], [path for path in paths if path in held]
