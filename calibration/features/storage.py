"""Arrays that may be larger than the memory allowed: beyond it they lie in a temporary file."""

from __future__ import annotations

import os
import tempfile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.features.fitter import Float, size_text
from unblemish.errors import CalibrationError


class Scratch:
    """A temporary file without a name, gone when it is closed or the process ends."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def __bool__(self) -> bool:
        return self._file is not None

    def zeros(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """A mapped array of zeros. Raises: CalibrationError where the disk has no room for it."""
        size = 8 * int(np.prod(shape, dtype=np.int64))
        try:
            file = self._open()
            # A page of a sparse file that finds no room when it is written to ends the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, np.float64, "r+", shape=shape)
        except OSError as error:
            raise _no_room(size, error) from error

    def append(self, array: Float, expected: int) -> None:
        """Write at the end; `expected` bytes in all is what an error speaks of."""
        try:
            np.ascontiguousarray(array).tofile(self._open())
        except OSError as error:
            raise _no_room(expected, error) from error

    def rows(self, shape: tuple[int, ...]) -> Float:
        """What was appended, mapped for reading."""
        file = self._open()
        file.flush()
        return np.memmap(file, np.float32, "r", shape=shape)

    def close(self) -> None:
        """Remove the file. May be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="unblemish-")  # noqa: SIM115
        return self._file


def _no_room(size: int, error: OSError) -> CalibrationError:
    return CalibrationError(
        f"no room for {size_text(size)} of temporary data in {tempfile.gettempdir()}: "
        f"{error.strerror or error}. Use fewer channels or images, allow more memory, or set "
        "TMPDIR to a larger disk."
    )


class Rows:
    """An array (n, c) float32 that rows are appended to.

    Args:
        memory: bytes kept in memory; with more, all rows move to a temporary file.
    """

    def __init__(self, *, memory: int) -> None:
        self.count = 0
        self._memory = memory
        self._parts: list[Float] = []
        self._scratch = Scratch()
        self._channels = 0

    @property
    def on_disk(self) -> bool:
        """Whether the rows lie in a file."""
        return bool(self._scratch)

    def append(self, rows: Float) -> None:
        """Add (n, c) rows; they are copied. Raises: CalibrationError where the disk is full."""
        self._channels = rows.shape[1]
        self.count += rows.shape[0]
        size = 4 * self.count * self._channels
        if not self._scratch:
            self._parts.append(np.array(rows, np.float32))
            if size <= self._memory:
                return
            rows, self._parts = np.concatenate(self._parts), []
        self._scratch.append(rows, size)

    def array(self) -> Float:
        """All rows; of a file, mapped, so that only what is read takes memory."""
        if self._scratch:
            return self._scratch.rows((self.count, self._channels))
        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    def close(self) -> None:
        """Let go of everything."""
        self._parts = []
        self._scratch.close()
