"""Buffers that grow to the largest batch and are then used again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Workspace:
    """Named flat buffers; a request of a smaller size gets the front of the same memory."""

    def __init__(self) -> None:
        self._flat: dict[str, NDArray[Any]] = {}
        self._views: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}

    def array(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32
    ) -> NDArray[Any]:
        """A C-contiguous array of that name and shape, its content undefined.

        The same request returns the very same array until a larger one was made under the name.
        """
        view = self._views.get((name, shape))
        if view is not None and view.dtype == dtype:
            return view
        size = int(np.prod(shape, dtype=np.int64))
        flat = self._flat.get(name)
        if flat is None or flat.size < size or flat.dtype != dtype:
            flat = np.zeros(size, dtype)
            self._flat[name] = flat
            self._views = {key: v for key, v in self._views.items() if key[0] != name}
        view = flat[:size].reshape(shape)
        self._views[name, shape] = view
        return view
