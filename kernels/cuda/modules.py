"""The compiled kernels: the fat binary of the install, or compiled here where none fits."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

from unblemish.errors import BackendError
from unblemish.kernels.cuda.signatures import HEADERS, SOURCES, Signature, signatures

OPTIONS = ("-std=c++17", "-O3")


def load_function(kernel: Signature, capability: tuple[int, int]) -> Any:
    """The kernel as a `pycuda.driver.Function`, in the current context.

    Raises: BackendError where neither a fat binary fits nor nvcc can compile the source.
    """
    module = _module(kernel.source, capability)
    return module.get_function(f"unblemish_{kernel.name}")


@functools.cache
def _module(source: str, capability: tuple[int, int]) -> Any:
    import pycuda.driver as cuda

    binary = SOURCES / f"{source}.fatbin"
    refusal = "this install has none"
    if binary.exists():
        try:
            return cuda.module_from_buffer(binary.read_bytes())
        except cuda.Error as error:  # none of its architectures fits, nor may its PTX be compiled
            refusal = str(error)
    nvcc = find_nvcc()
    if nvcc is None:
        raise BackendError(
            f"no compiled CUDA kernels for compute capability {capability[0]}.{capability[1]} "
            f"({refusal}), and nvcc, which would make them, was not found. Install the CUDA "
            "toolkit, or put nvcc on PATH."
        )
    return _compiled(source, nvcc)


def _compiled(source: str, nvcc: str) -> Any:
    """Compile for the GPU at hand; pycuda keeps the result, by the source and all it includes."""
    from pycuda.compiler import SourceModule

    text = (SOURCES / f"{source}.cu").read_text(encoding="utf-8")
    try:
        compiled = SourceModule(
            text, nvcc=nvcc, options=list(OPTIONS), no_extern_c=True,
            include_dirs=[str(SOURCES), str(HEADERS)],
        )  # fmt: skip
    except Exception as error:  # pycuda's CompileError derives from its own Error or from Exception
        raise BackendError(
            f"nvcc cannot compile the CUDA kernel {source}: {error}. Install unblemish again, or a "
            "toolkit that knows this GPU."
        ) from error
    return compiled.module


def has_binaries() -> bool:
    """Whether every source has its fat binary in this install, for whatever chips."""
    return all((SOURCES / f"{s.source}.fatbin").exists() for s in signatures().values())


def find_nvcc() -> str | None:
    """Where nvcc is: NVCC, PATH, CUDA_HOME or /usr/local/cuda."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    named = [str(Path(home) / "bin" / "nvcc") for home in (*homes, "/usr/local/cuda") if home]
    for candidate in (os.environ.get("NVCC"), "nvcc", *named):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    return None
