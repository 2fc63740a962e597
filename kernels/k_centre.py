"""Greedy k-centre choice over rows: compiled and lazy, or plainly in NumPy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.cores import available_cores
from unblemish.errors import ConfigError, ShapeError

Float = NDArray[np.float32]
Rows = NDArray[np.int64]

_BLOCK = 8192  # rows of one pass: they stay within the caches
_POOL = 4096  # from half to four times as many, hardly any difference was measured


class KCentre(Protocol):
    """Rows chosen one after the other, each the farthest from those before it."""

    def choose(self, count: int) -> Rows:
        """The next `count` rows; of equally far ones the first.

        Raises: ConfigError where fewer are left.
        """


def k_centre(rows: Float, first: int, threads: int | None = None) -> KCentre:
    """Begin with row `first`.

    The compiled choice is that of the plain algorithm, with fewer comparisons, and shorter ones
    where much of a distance lies in the leading numbers of the rows. Of rows whose distances
    differ by less than the rounding of float32, implementations may take different ones.

    Args:
        rows: (N, d) float32, C-contiguous, finite, at most 2^31 - 1 rows; not to be changed
            meanwhile. Their squared distances must be finite too, times four.
        threads: of the compiled choice, None for the processors available.
    Raises: ShapeError; ConfigError where there is no row `first`, a value does not fit or
        `threads` is less than 1.
    """
    _check(rows, first)
    _check_values(rows)
    if threads is not None and threads < 1:
        raise ConfigError(f"k_centre needs at least one thread, found threads={threads}.")
    try:
        return CompiledKCentre(rows, first, threads)
    except ImportError:
        return NumpyKCentre(rows, first)


def _check(rows: Float, first: int) -> None:
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype != np.float32 or len(rows) >= 2**31:
        raise ShapeError(
            "k_centre: rows must be (N, d) float32 with N from 1 to 2^31 - 1 and d >= 1; found "
            f"{rows.shape} {rows.dtype}."
        )
    if not rows.flags.c_contiguous:
        raise ShapeError("k_centre: rows must be C-contiguous. Pass np.ascontiguousarray(rows).")
    if not 0 <= first < len(rows):
        raise ConfigError(f"k_centre: there is no row {first} of {len(rows)}.")


def _check_values(rows: Float) -> None:
    blocks = (rows[first : first + _BLOCK] for first in range(0, len(rows), _BLOCK))
    largest = float(np.max([max(block.max(), -block.min()) for block in blocks]))
    if not np.isfinite(largest):
        raise ConfigError("k_centre: rows hold NaN or infinite values, which have no distance.")
    limit = float(np.sqrt(np.finfo(np.float32).max / rows.shape[1])) / 4
    if largest > limit:
        raise ConfigError(
            f"k_centre: rows hold values up to {largest:.2g}, whose distances overflow float32; "
            f"with {rows.shape[1]} numbers a row they may reach {limit:.2g}. Scale the rows."
        )


def _check_left(wanted: int, left: int) -> None:
    if not 0 <= wanted <= left:
        raise ConfigError(f"k_centre: {left} rows are left; {wanted} were asked for.")


class CompiledKCentre:
    """`KCentre` in C++; see kernels/cpu/k_centre.hpp.

    Memory: some 6 numbers a row, the rows chosen and the pool.

    Args:
        pool: rows that are compared with every row chosen; the choice does not depend on it.
    Raises: ImportError where the compiled kernels are missing.
    """

    def __init__(
        self,
        rows: Float,
        first: int,
        threads: int | None = None,
        *,
        instruction_set: str | None = None,
        pool: int = _POOL,
    ) -> None:
        from unblemish.kernels import _cpu

        available = _cpu.instruction_sets()
        chosen = available[-1] if instruction_set is None else instruction_set
        if chosen not in available:
            raise ConfigError(
                f"k_centre: instruction_set={chosen!r} is not one this processor and build have: "
                f"{', '.join(available)}."
            )
        engine = _cpu.Engine(available_cores() if threads is None else threads, chosen)
        self._inner = _cpu.KCentre(engine, rows, first, pool)
        self._left = len(rows) - 1

    def choose(self, count: int) -> Rows:
        """See `KCentre`."""
        _check_left(count, self._left)
        out = np.empty(count, np.int64)
        self._inner.choose(out)
        self._left -= count
        return out


class NumpyKCentre:
    """`KCentre` in NumPy: every row with every new one, by ||a||^2 - 2 a b + ||b||^2."""

    def __init__(self, rows: Float, first: int) -> None:
        self._rows = rows
        self._norms = np.einsum("nd,nd->n", rows, rows)
        self._nearest = np.full(len(rows), np.inf, np.float32)  # -1 where a row is chosen
        self._product = np.empty(min(_BLOCK, len(rows)), np.float32)
        self._last, self._left = first, len(rows) - 1

    def choose(self, count: int) -> Rows:
        """See `KCentre`."""
        _check_left(count, self._left)
        out = np.empty(count, np.int64)
        for number in range(count):
            self._last = out[number] = self._farthest(self._last)
        self._left -= count
        return out

    def _farthest(self, centre: int) -> int:
        """Take in a new centre, and return the row that is farthest from all centres."""
        rows, norms, nearest = self._rows, self._norms, self._nearest
        nearest[centre] = -1
        best, where = -np.inf, -1
        for first in range(0, len(rows), _BLOCK):
            part = slice(first, min(first + _BLOCK, len(rows)))
            found = self._product[: part.stop - part.start]
            np.matmul(rows[part], rows[centre], out=found)
            found *= -2
            found += norms[part]
            found += norms[centre]
            np.maximum(found, 0, out=found)
            np.minimum(nearest[part], found, out=nearest[part], where=nearest[part] >= 0)
            at = int(nearest[part].argmax())
            if nearest[first + at] > best:
                best, where = float(nearest[first + at]), first + at
        return where
