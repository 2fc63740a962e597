"""What a solver sees of an execution engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; symbolic dimensions are strings, e.g. 'batch'."""

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]


class Program(Protocol):
    """One loaded graph. Not thread-safe: one program, one thread; load again for another."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run on `feeds`. The arrays returned are the program's, valid until its next run.

        Raises: ShapeError where a feed has another shape or dtype than the graph states;
        BackendError where the engine fails.
        """


class Pair(Protocol):
    """A forward graph and its way back, with the tensors kept in between held inside the engine.

    The one interface a method needs: `forward`, then `backward`; buffers are allocated once per
    batch size.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs of the forward graph without the kept tensors; valid until the next forward."""

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        """{output name: cotangent} -> {input name: gradient}, valid until the next backward."""


class Backend(Protocol):
    """An engine family: loads graphs of a bundle."""

    name: str

    def program(self, path: str, *, threads: int | None = None) -> Program:
        """Load one graph."""

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> Pair:
        """Load a forward/backward pair made by `unblemish.export.differentiate`."""
