"""Masks of what is to be filled, by the names of the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unblemish.batch.sources import Source
from unblemish.calibration.metrics.truth import NORMAL
from unblemish.errors import ConfigError, SourceError
from unblemish.images import Image, read_image

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """Where the masks of a batch are.

    Args:
        folder: `<category>/<name>_mask.png` as truth masks; or `<name>.png` or `<name>_mask.png`
            right there, as `inspect` writes them.
        file: one mask for all images.
    Raises: ConfigError where both are given; SourceError where one is not what it should be.
    """

    folder: Path | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and self.file is not None:
            raise ConfigError(
                "--masks is a folder of masks, --mask one mask for all images. Give one of them."
            )
        if self.folder is not None and not self.folder.is_dir():
            raise SourceError(f"{self.folder} is not a folder; --masks wants one of masks by name.")
        if self.file is not None:
            read_mask(self.file)

    @property
    def known(self) -> bool:
        """Whether there are any; else the search finds by itself what to fill."""
        return self.folder is not None or self.file is not None

    def of(self, source: Source, image: Image) -> Mask:
        """The mask (H, W) of an image; of one in a folder 'good' without a mask it is empty.

        Raises: SourceError where it is missing, no mask, or of another size.
        """
        path = self.file or self._find(source)
        if path is None:
            return np.zeros(image.shape[:2], np.bool_)
        mask = read_mask(path)
        if mask.shape != image.shape[:2]:
            raise SourceError(
                f"the mask {path} of {source.label} is {mask.shape[1]} x {mask.shape[0]} pixels, "
                f"the image {image.shape[1]} x {image.shape[0]}. Both must have the same size."
            )
        return mask

    def _find(self, source: Source) -> Path | None:
        assert self.folder is not None
        stem = source.path.stem if source.frame is None else Path(source.name).name
        named = (f"{source.category}/{stem}_mask.png", f"{source.name}.png",
                 f"{source.name}_mask.png", f"{stem}.png", f"{stem}_mask.png")  # fmt: skip
        places = [self.folder / name for name in dict.fromkeys(named)]
        found = next((path for path in places if path.is_file()), None)
        if found is None and source.category != NORMAL:
            raise SourceError(
                f"no mask for {source.label}: looked for {', '.join(map(str, places))}. "
                "Add it, or leave --masks out to have the defects found."
            )
        return found


def read_mask(path: Path) -> Mask:
    """Read a mask: 0 stays, the one other level is filled; (H, W) bool.

    Raises: SourceError where it cannot be read, or holds more than two levels.
    """
    pixels = read_image(path)
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    levels = np.unique(pixels)
    if pixels.ndim == 3 or len(levels[levels != 0]) > 1:
        found = "colours" if pixels.ndim == 3 else f"{len(levels)} levels"
        raise SourceError(
            f"{path} is no mask: it holds {found}; expected 0 for what stays and one other level "
            "for what is to be filled. Save it as PNG, without smoothing."
        )
    return np.asarray(pixels != 0)
