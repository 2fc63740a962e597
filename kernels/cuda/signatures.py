"""What the CUDA kernels take, read from their sources: no signature is written down twice."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unblemish.errors import BackendError

SOURCES = Path(__file__).resolve().parent
HEADERS = SOURCES.parent / "include"

_ENTRY = re.compile(
    r'extern "C" __global__ void __launch_bounds__\([\w:, ]+\)\s+unblemish_(\w+)\(([^)]*)\)\s*\{'
)
_STRUCT = re.compile(r"struct (\w+) \{((?:\s*float [\w, ]+;[^\n]*)+)\s*\};")
_SCALARS = {"int": "i", "float": "f", "double": "d", "size_t": "Q"}  # of the struct module
_POINTEES = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned char": np.uint8,
    "std::uint16_t": np.uint16,
    "unsigned long long": np.uint64,
    "unsigned short": np.float16,  # halves, see half.hpp
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a kernel.

    Args:
        format: letters of the `struct` module; 'P' for a pointer.
        dtype: what a pointer points to; None for numbers and for records of floats.
        written: whether the kernel may write there.
    """

    name: str
    format: str
    dtype: np.dtype[Any] | None = None
    written: bool = False


@dataclass(frozen=True)
class Signature:
    """A kernel: its name without prefix, the source it is in, its arguments in order."""

    name: str
    source: str
    parameters: tuple[Parameter, ...]

    @property
    def format(self) -> str:
        """All arguments, as `struct.pack` lays them out for a launch."""
        return "".join(p.format for p in self.parameters)

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """The arguments in order, by name; None is a null pointer, a record a sequence.

        Raises: BackendError where one is missing.
        """
        values: list[Any] = []
        for parameter in self.parameters:
            if parameter.name not in given:
                raise BackendError(
                    f"CUDA kernel {self.name} needs '{parameter.name}'; it was given "
                    f"{', '.join(given)}."
                )
            value = given[parameter.name]
            if parameter.dtype is None and len(parameter.format) > 1:
                values.extend(float(v) for v in value)
            else:
                values.append(0 if value is None else value)
        return values


@functools.cache
def signatures() -> Mapping[str, Signature]:
    """Every kernel of this folder, by name. Raises: BackendError where a source cannot be read."""
    records = _records()
    found: dict[str, Signature] = {}
    for path in sorted(SOURCES.glob("*.cu")):
        for name, parameters in _ENTRY.findall(path.read_text(encoding="utf-8")):
            parsed = tuple(_parameter(name, text, records) for text in parameters.split(","))
            found[name] = Signature(name, path.stem, parsed)
    if not found:
        raise BackendError(
            f"the sources of the CUDA kernels are missing from {SOURCES}. Install unblemish again."
        )
    return found


def _records() -> Mapping[str, int]:
    """Number of floats of every structure made of floats alone."""
    records: dict[str, int] = {}
    for path in sorted((HEADERS / "unblemish").glob("*.hpp")):
        for name, body in _STRUCT.findall(path.read_text(encoding="utf-8")):
            fields = re.findall(r"float ([\w, ]+);", body)
            records[name] = sum(len(names.split(",")) for names in fields)
    return records


def _parameter(kernel: str, text: str, records: Mapping[str, int]) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", "").split()
    *kind, name = words
    if "*" in kind:
        pointee = " ".join(word for word in kind if word not in ("const", "*"))
        if pointee in _POINTEES:
            return Parameter(name, "P", np.dtype(_POINTEES[pointee]), "const" not in kind)
        pointee = pointee.removeprefix("unblemish::")
        if pointee in records:
            return Parameter(name, "P", np.dtype(np.float32), "const" not in kind)
    elif len(kind) == 1:
        letter = _SCALARS.get(kind[0])
        floats = records.get(kind[0].removeprefix("unblemish::"))
        if letter is not None or floats is not None:
            return Parameter(name, letter or "f" * (floats or 0))
    raise BackendError(f"CUDA kernel {kernel}: cannot read its parameter '{text.strip()}'.")
