"""The normal images that calibration works on, and the synthetic defects made from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.searches import Polarity
from unblemish.calibration.defects import FILLS, SHAPES, Fill, Shape, SyntheticDefect, paste_defect
from unblemish.calibration.defects.shapes import SMALLEST_SIDE
from unblemish.calibration.split import draw
from unblemish.calibration.thresholds import FEWEST
from unblemish.errors import CalibrationError, ConfigError, SourceError
from unblemish.images import list_images, read_image
from unblemish.runtime.frames import to_unit, white_for

KINDS: tuple[tuple[Shape, Fill], ...] = tuple((shape, fill) for fill in FILLS for shape in SHAPES)


@dataclass(frozen=True)
class Normals:
    """Readable normal images, in the order drawn, and what was left out (path, reason)."""

    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]  # distinct (height, width)
    frame: tuple[int, int]  # median height and width
    rejected: tuple[tuple[Path, str], ...]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (read_image(path) for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def choose_normals(
    folder: str | os.PathLike[str],
    *,
    share: float = 1.0,
    most: int | None = None,
    seed: int = 0,
    white: float | None = None,
    stated: float | None = None,
) -> Normals:
    """List the images of a folder, set aside what cannot be used, and draw.

    The order is that of training: with the folder, seed and held-back share of a training run, the
    images drawn are those it was not trained on.

    Args:
        white, stated: asked for, and stated by the bundle; see `white_for`.
        share: of the readable images, drawn at random.
        most: largest number used.
        white: intensity of white in the images, where it is not that of their dtype.
    Raises: SourceError where the folder is missing or empty; ConfigError where `share` or `most`
        is out of range; CalibrationError where fewer than 10 images can be used.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of normal images must lie in (0, 1]; found {share}.")
    if most is not None and most < FEWEST:
        raise ConfigError(f"calibration needs {FEWEST} normal images or more; {most} were allowed.")
    sizes: dict[Path, tuple[int, int]] = {}
    rejected: list[tuple[Path, str]] = []
    for path in list_images(folder):
        size = _readable_size(path, white, stated)
        if isinstance(size, str):
            rejected.append((path, size))
        else:
            sizes[path] = size
    # Drawn before small images are left out, which training keeps: the draw hangs on their number.
    drawn = draw(list(sizes), share, seed)
    rejected += [(path, _too_small(path, size)) for path, size in sizes.items() if _small(size)]
    good = [path for path in sizes if not _small(sizes[path])]
    drawn = [path for path in drawn if not _small(sizes[path])][:most]
    if len(drawn) < FEWEST:
        raise CalibrationError(_too_few(folder, len(good), len(drawn), rejected))
    used = np.array([sizes[path] for path in drawn])
    height, width = (int(value) for value in np.median(used, axis=0))
    distinct = tuple(sorted({sizes[path] for path in drawn}))
    return Normals(tuple(drawn), distinct, (height, width), tuple(rejected))


def _readable_size(path: Path, white: float | None, stated: float | None) -> tuple[int, int] | str:
    """Height and width of an image, or why it cannot be read."""
    try:
        frame = read_image(path)
        to_unit(frame, white=white_for(frame, white, stated))
    except SourceError as error:
        return str(error)
    return frame.shape[0], frame.shape[1]


def _small(size: tuple[int, int]) -> bool:
    return min(size) < SMALLEST_SIDE


def _too_small(path: Path, size: tuple[int, int]) -> str:
    height, width = size
    return f"{path}: {width} x {height} px; at least {SMALLEST_SIDE} px a side are needed."


def _too_few(
    folder: str | os.PathLike[str], good: int, drawn: int, rejected: list[tuple[Path, str]]
) -> str:
    why = f" {len(rejected)} cannot be used; the first: {rejected[0][1]}" if rejected else ""
    return (
        f"{drawn} normal images are too few: at least {FEWEST} are needed, and about 100 for a "
        f"false-reject rate of 1 %. {folder} has {good} that can be used.{why}"
    )


class SyntheticSet(Sequence[SyntheticDefect]):
    """Synthetic defects on normal images, made anew on every access: nothing large is kept.

    Item i takes kind i of `KINDS` and normal image i, both in turn, and its own random state
    (seed, 1, i): the same seed and images give the same set, and a longer set begins with it.
    """

    def __init__(
        self,
        normals: Normals,
        count: int,
        seed: int,
        white: float | None = None,
        polarity: Polarity = "both",
        stated: float | None = None,
    ) -> None:
        self._normals = normals
        self._count = count
        self._seed = seed
        self._white, self._stated = white, stated
        self._polarity = polarity

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SyntheticDefect: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SyntheticDefect]: ...
    def __getitem__(self, index: int | slice) -> SyntheticDefect | Sequence[SyntheticDefect]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        frame = read_image(self._normals.paths[index % len(self._normals)])
        shape, fill = KINDS[index % len(KINDS)]
        rng = np.random.default_rng([self._seed, 1, index])
        white = white_for(frame, self._white, self._stated)
        return paste_defect(
            frame, rng, shape=shape, fill=fill, white=white, polarity=self._polarity
        )
