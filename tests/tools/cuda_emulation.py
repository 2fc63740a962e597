"""Builds the CUDA drivers for the host, and launches them there; see `kernels/emulate_cuda.hpp`."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOURCES = (
    "emulate_cuda.cpp",
    "emulate_detectors.cpp",
    "emulate_energy_terms.cpp",
    "emulate_feature_terms.cpp",
    "emulate_image_terms.cpp",
    "emulate_preprocess.cpp",
)
_ROOT = Path(__file__).resolve().parents[2]
_KERNELS = _ROOT / "kernels"
_OUTCOMES = {1: "some lanes wait at a __syncthreads that others never reach", 2: "mispacked"}
_FORMATS = {"c_int": "i", "c_uint": "I", "c_float": "f", "c_double": "d", "c_ulong": "Q"}


def build(source: str, folder: Path) -> ctypes.CDLL:
    """Compile one of `SOURCES`; skips the test where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to emulate the CUDA drivers with")
    library = folder / f"{source}.so"
    if not library.exists():
        include = ["-I", str(_KERNELS / "cuda"), "-I", str(_KERNELS / "include")]
        # Fortified, glibc takes a _longjmp to another stack for an attack.
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-w"]
        path = str(_ROOT / "tests" / "kernels" / source)
        written = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *options, *include, path, "-o", str(written)], check=True)
        written.replace(library)
    return ctypes.CDLL(str(library))


def launch_packed(library: ctypes.CDLL, name: str, grid: tuple[int, int], packed: bytes) -> None:
    """Launch `name` with its arguments packed as for cuLaunchKernel."""
    address = ctypes.c_void_p.in_dll(library, f"launch_{name}").value
    assert address is not None
    kinds = (ctypes.c_uint, ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t)
    outcome = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(address)(*grid, packed, len(packed))
    assert outcome == 0, f"{name}: {_OUTCOMES[outcome]}"


def launcher(library: ctypes.CDLL) -> Callable[..., None]:
    """launch('kernel', grid, *arguments): arrays become pointers, None 0; numbers are ctypes."""

    def launch(name: str, grid: tuple[int, int], *arguments: Any) -> None:
        parts = [_part(value) for value in arguments]
        packed = struct.pack("".join(f for f, _ in parts), *(v for _, many in parts for v in many))
        launch_packed(library, name, grid, packed)

    return launch


def _part(value: Any) -> tuple[str, tuple[Any, ...]]:
    if isinstance(value, np.ndarray):
        return "P", (value.ctypes.data,)
    if value is None:
        return "P", (0,)
    if isinstance(value, ctypes.Structure):
        return f"{len(value._fields_)}f", tuple(getattr(value, name) for name, _ in value._fields_)
    return _FORMATS[type(value).__name__], (value.value,)
