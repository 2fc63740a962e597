"""One operation on one set of arrays, and how far it is from float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.api import Kernels
from unblemish.kernels.reference import ReferenceKernels

Array = NDArray[Any]


@dataclass(frozen=True)
class Job:
    """One operation.

    Args:
        bytes: what it must move: every array once where it is read, and once where it is written.
        outputs: the arrays that `by_kernels` writes and that are judged.
    """

    name: str
    by_kernels: Callable[[Kernels], object]
    by_torch: Callable[[], object]
    bytes: int
    outputs: Sequence[Array] = ()

    def errors(self, candidates: Sequence[Kernels]) -> list[float]:
        """The largest difference of each to the float64 reference, over the largest number.

        The arrays are left as they were.
        """
        before = [array.copy() for array in self.outputs]
        expected = self._results(ReferenceKernels(), before)
        return [
            max(map(_difference, self._results(kernels, before), expected), default=0.0)
            for kernels in candidates
        ]

    def _results(self, kernels: Kernels, before: Sequence[Array]) -> list[Array]:
        self.by_kernels(kernels)
        results = [array.astype(np.float64) for array in self.outputs]
        for array, was in zip(self.outputs, before, strict=True):
            array[...] = was
        return results


def _difference(found: Array, expected: Array) -> float:
    largest = float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / (largest or 1.0)
