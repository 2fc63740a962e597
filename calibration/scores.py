"""Score maps kept on disk while calibration works on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Score = NDArray[np.float32]


class ScoreStore(Sequence[Score]):
    """A growing list of score maps in a temporary folder, which ends with the context.

    Hundreds of maps at a camera's resolution need not fit in memory.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="unblemish-scores-")
        self._count = 0

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def append(self, score: Score) -> None:
        """Keep a copy of `score`, (H, W) float32."""
        np.save(self._path(self._count), score)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Score:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return np.asarray(np.load(self._path(index)))

    def __iter__(self) -> Iterator[Score]:
        return (self[index] for index in range(self._count))

    def _path(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.npy"
