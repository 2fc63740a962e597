"""Rows that grow: in memory up to a limit, beyond it in a temporary file."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from unblemish.calibration.features.fitter import Float
from unblemish.errors import CalibrationError


class Rows:
    """An array (n, c) float32 that rows are appended to.

    Args:
        memory: bytes kept in memory; with more, all rows move to a temporary file.
    """

    def __init__(self, *, memory: int) -> None:
        self.count = 0
        self._memory = memory
        self._parts: list[Float] = []
        self._file: Any = None
        self._channels = 0

    @property
    def on_disk(self) -> bool:
        """Whether the rows lie in a file."""
        return self._file is not None

    def append(self, rows: Float) -> None:
        """Add (n, c) rows; they are copied. Raises: CalibrationError where the disk is full."""
        self._channels = rows.shape[1]
        self.count += rows.shape[0]
        if self._file is None:
            self._parts.append(np.array(rows, np.float32))
            if 4 * self.count * self._channels <= self._memory:
                return
            rows, self._parts = np.concatenate(self._parts), []
        self._write(rows)

    def array(self) -> Float:
        """All rows; of a file, mapped, so that only what is read takes memory."""
        if self._file is None:
            if len(self._parts) != 1:
                self._parts = [np.concatenate(self._parts)]
            return self._parts[0]
        self._file.flush()
        shape = (self.count, self._channels)
        return np.memmap(self._file, np.float32, "r", shape=shape)

    def close(self) -> None:
        """Remove the file."""
        self._parts = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, rows: Float) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="unblemish-")
            np.ascontiguousarray(rows).tofile(self._file)
        except OSError as error:
            raise CalibrationError(
                f"no room for {4e-9 * self.count * self._channels:.1f} GB of features: "
                f"{error.strerror or error}. Use fewer images (--most) or a larger --memory, or "
                "set TMPDIR to a larger disk."
            ) from error
