"""The normal images that calibration works on, and the synthetic defects made from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.defects import FILLS, SHAPES, Fill, Shape, SyntheticDefect, paste_defect
from unblemish.calibration.defects.shapes import SMALLEST_SIDE
from unblemish.calibration.thresholds import FEWEST
from unblemish.errors import CalibrationError, ConfigError, SourceError
from unblemish.images import list_images, read_image

KINDS: tuple[tuple[Shape, Fill], ...] = tuple((shape, fill) for fill in FILLS for shape in SHAPES)


@dataclass(frozen=True)
class Normals:
    """Readable normal images, in the order drawn, and what was left out (path, reason)."""

    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]  # distinct (height, width)
    rejected: tuple[tuple[Path, str], ...]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (read_image(path) for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def choose_normals(
    folder: str | os.PathLike[str], *, share: float = 1.0, most: int | None = None, seed: int = 0
) -> Normals:
    """List the images of a folder, draw those to use, and set aside what cannot be read.

    Args:
        share: of the images, drawn at random: hold back a part of a folder that is also trained on.
        most: largest number used.
    Raises: SourceError where the folder is missing or empty; ConfigError where `share` or `most`
        is out of range; CalibrationError where fewer than 10 images can be used.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of normal images must lie in (0, 1]; found {share}.")
    if most is not None and most < FEWEST:
        raise ConfigError(
            f"calibration needs at least {FEWEST} normal images; {most} were allowed."
        )
    paths = list_images(folder)
    order = np.random.default_rng([seed, 0]).permutation(len(paths))
    drawn = [paths[i] for i in order[: max(1, round(share * len(paths)))]]
    used, sizes, rejected = _readable(drawn, most)
    if len(used) < FEWEST:
        raise CalibrationError(_too_few(folder, len(drawn), len(used), rejected))
    return Normals(tuple(used), tuple(sorted(sizes)), tuple(rejected))


def _readable(
    paths: Sequence[Path], most: int | None
) -> tuple[list[Path], set[tuple[int, int]], list[tuple[Path, str]]]:
    used: list[Path] = []
    sizes: set[tuple[int, int]] = set()
    rejected: list[tuple[Path, str]] = []
    for path in paths:
        if most is not None and len(used) == most:
            break
        try:
            height, width = read_image(path).shape[:2]
        except SourceError as error:
            rejected.append((path, str(error)))
            continue
        if min(height, width) < SMALLEST_SIDE:
            smallest = f"at least {SMALLEST_SIDE} px a side are needed"
            rejected.append((path, f"{path}: {width} x {height} px; {smallest}."))
            continue
        used.append(path)
        sizes.add((height, width))
    return used, sizes, rejected


def _too_few(
    folder: str | os.PathLike[str], found: int, usable: int, rejected: list[tuple[Path, str]]
) -> str:
    why = f" The first that cannot be used: {rejected[0][1]}" if rejected else ""
    return (
        f"{usable} of {found} images drawn from {folder} can be used; at least {FEWEST} normal "
        f"images are needed, and about 100 for a false-reject rate of 1 %.{why}"
    )


class SyntheticSet(Sequence[SyntheticDefect]):
    """Synthetic defects on normal images, made anew on every access: nothing large is kept.

    Item i takes kind i of `KINDS` and normal image i, both in turn, and its own random state
    (seed, 1, i): the same seed and images give the same set, and a longer set begins with it.
    """

    def __init__(self, normals: Normals, count: int, seed: int) -> None:
        self._normals = normals
        self._count = count
        self._seed = seed

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
        return paste_defect(frame, rng, shape=shape, fill=fill)
