"""Sessions of ONNX Runtime on its execution providers, and what the providers are told."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from unblemish.cores import available_cores
from unblemish.errors import BackendError
from unblemish.runtime.backends.pairing import first_line
from unblemish.runtime.backends.protocol import TensorSpec

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
Provider = tuple[str, dict[str, str]]

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
_REMEDY = "Export the bundle again, or upgrade onnxruntime."
_REMEDY_GPU = "`unblemish doctor` says whether the provider's libraries are there."


def provider_options(
    provider: str, *, precision: str = "fp32", device: int = 0, stream: int | None = None,
    graph: bool = False,
) -> list[Provider]:  # fmt: skip
    """The provider and those that it may hand operators to, each with its options.

    TensorRT is not told of half types or bytes: only then is its network strongly typed, and what
    the graph has in float32, graphs for fine-tuning among it, stays so. Its builder may round
    factors to TF32, for which the provider has no option.

    Args:
        precision: of the bundle; on CUDA, float32 bundles are computed without TF32.
        stream: handle of the CUDA stream to run on, None for one of the provider's own.
        graph: record each run of a shape once as a CUDA graph, and replay it.
    """
    if provider == CPU:
        return [(CPU, {})]
    common = {"device_id": str(device)}
    if stream is not None:
        common |= {"user_compute_stream": str(stream)}
    exact = {"use_tf32": "0"} if precision == "fp32" else {}
    cuda = (CUDA, {**common, **exact, **({"enable_cuda_graph": "1"} if graph else {})})
    if provider == CUDA:
        return [cuda, (CPU, {})]
    told = {**common, "trt_timing_cache_enable": "1"}
    if graph:
        told |= {"trt_cuda_graph_enable": "1"}
    return [(TENSORRT, told), (CUDA, {**common, **exact}), (CPU, {})]


def open_session(
    path: str, threads: int | None, providers: list[Provider] | None = None
) -> ort.InferenceSession:
    """Open a session with the settings of a machine that also does other work.

    Threads spin inside a run, where waking them per operator costs most, and stop at its end, so
    that nothing burns a core between two frames.

    Args:
        providers: see `provider_options`; None for the CPU.
    Raises: BackendError where the file is missing, the graph is refused, or the first of the
        providers gave way to another, as it does where its libraries cannot be loaded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if _share_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    wanted = providers or [(CPU, {})]
    if wanted[0][0] != CPU:
        _preload()
    try:
        # With its fallback it prints on stdout what it does, and hides why.
        session = ort.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise BackendError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {first_line(error)}. "
            f"{_REMEDY if wanted[0][0] == CPU else _REMEDY_GPU}"
        ) from error
    if session.get_providers()[0] != wanted[0][0]:
        raise BackendError(
            f"ONNX Runtime's {wanted[0][0]} gave way to {session.get_providers()[0]}: "
            f"{missing_library(wanted[0][0])}. `unblemish doctor` says what to do."
        )
    return session


@functools.cache
def _preload() -> None:
    """Let ONNX Runtime find CUDA and cuDNN where pip has put them; the system's need nothing."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            preload()


def missing_library(provider: str) -> str:
    """Why the library of a provider that gave way cannot be loaded, in the system's words."""
    stem = provider.removesuffix("ExecutionProvider").lower()
    path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{stem}.so"
    if not path.is_file():
        return "its libraries cannot be loaded"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"its libraries cannot be loaded ({error})"
    return "its libraries are there, and it refuses the GPU"


@functools.cache
def _share_arena() -> bool:
    """One arena for all sessions of the process: they run in turn and need no scratch of their own.

    Measured on a 7.6 M parameter generator with its backward graph and encoder: 272 instead of
    312 MB resident.
    """
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, -1, -1, -1))
    except Exception:  # registered already, by whoever shares this process; or not offered
        return False
    return True


def specs_of(nodes: Any) -> tuple[TensorSpec, ...]:
    """Names, shapes and dtypes of a session's inputs or outputs."""
    return tuple(map(_spec, nodes))


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BackendError(f"tensor '{node.name}' has type {node.type}, which is not supported.")
    shape = tuple(d if isinstance(d, int) else str(d or "?") for d in node.shape)
    return TensorSpec(node.name, shape, np.dtype(_DTYPES[node.type]))


def failed(error: Exception) -> BackendError:
    """What a run that raised comes to."""
    return BackendError(f"ONNX Runtime failed while running a graph: {first_line(error)}.")
