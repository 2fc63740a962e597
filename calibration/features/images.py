"""The normal images of a fit: checked once, then read as often as the method wants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.features.fitter import Advance, Float
from unblemish.calibration.features.options import FitOptions
from unblemish.calibration.split import draw
from unblemish.errors import SourceError
from unblemish.images import list_images, read_image
from unblemish.runtime.frames import to_unit, white_for
from unblemish.runtime.geometry import Geometry


@dataclass(frozen=True)
class NormalImages:
    """Readable normal images.

    Args:
        preprocess: frame -> model image, in [0, 1].
        paths: the images to fit, in the order drawn.
        held_back: those kept out.
        rejected: (file, why it cannot be used).
    """

    preprocess: Preprocess
    paths: tuple[Path, ...]
    held_back: tuple[Path, ...]
    rejected: tuple[tuple[Path, str], ...]

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self) -> Iterator[Float]:
        """Frames at their own size, (H, W, 1 or 3) float32 in [0, 1]."""
        for path in self.paths:
            frame = read_image(path)
            yield to_unit(frame, white=white_for(frame, None, self.preprocess.white))

    def model_images(self) -> Iterator[Float]:
        """What becomes of every frame: (tiles, C, h, w) float32 in [0, 1]."""
        geometry = Geometry(self.preprocess)
        return (geometry.unit_to_model(unit) for unit in self.frames())


def open_images(folder: Path, options: FitOptions, advance: Advance | None = None) -> NormalImages:
    """List the images of a folder, decode each once, and draw.

    The draw is that of training and of `choose_normals`: calibration with the share and seed of
    `held_back` finds the images kept out.
    Raises: SourceError where no image can be read.
    """
    listed = list_images(folder)
    good: list[Path] = []
    rejected: list[tuple[Path, str]] = []
    preprocess: Preprocess | None = None
    for number, path in enumerate(listed, 1):
        try:
            frame = read_image(path)
            to_unit(frame, white=white_for(frame, None, options.white))
            preprocess = preprocess or preprocess_of(frame, options)
            good.append(path)
        except SourceError as error:
            rejected.append((path, str(error)))
        if advance is not None:
            advance("reading", number, len(listed))
    if preprocess is None:
        raise SourceError(
            f"none of the {len(rejected)} images in {folder} can be read. The first: "
            f"{rejected[0][1]}"
        )
    held = draw(good, options.held_back, options.seed)
    rest = [path for path in draw(good, 1.0, options.seed) if path not in set(held)]
    return NormalImages(preprocess, tuple(rest[: options.most]), tuple(held), tuple(rejected))


def preprocess_of(frame: NDArray[Any], options: FitOptions) -> Preprocess:
    """How frames like this one become images of a detector, whose black is 0 and white 1."""
    grey = frame.ndim == 2 or frame.shape[2] == 1
    return Preprocess.model_validate(
        {
            "width": options.size, "height": options.size,
            "channels": options.channels or (1 if grey else 3),
            "low": 0.0, "high": 1.0, "white": options.white,
            "geometry": options.geometry, "scale": options.scale, "overlap": options.overlap,
        }
    )  # fmt: skip


def model_batches(images: NormalImages, size: int) -> Iterator[NDArray[np.float32]]:
    """Model images alone, `size` at a time (the last fewer), (batch, C, h, w)."""
    waiting: list[Float] = []
    for tiles in images.model_images():
        for tile in tiles:
            waiting.append(tile)
            if len(waiting) == size:
                yield np.stack(waiting)
                waiting = []
    if waiting:
        yield np.stack(waiting)
