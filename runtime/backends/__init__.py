"""Execution engines behind one protocol, loaded when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unblemish.errors import ConfigError
from unblemish.runtime.backends.protocol import Backend, Pair, Program, TensorSpec

if TYPE_CHECKING:
    from unblemish.bundle import Bundle

__all__ = ["BACKENDS", "CHAIN", "Backend", "Pair", "Program", "TensorSpec", "open_backend"]

CHAIN = ("tensorrt", "ort-tensorrt", "ort-cuda", "onnxruntime")
"""What 'auto' tries, in this order."""
BACKENDS = (*CHAIN, "openvino", "torch")


def open_backend(
    name: str | Backend = "auto", threads: int | None = None, *, bundle: Bundle | None = None
) -> Backend:
    """Open an engine family by name.

    Args:
        name: 'auto' (the first of TensorRT, ONNX Runtime with TensorRT, with CUDA and on the CPU
            that runs here, see `choose`), or one of `BACKENDS`; a backend already opened is
            returned.
        threads: threads of each engine; None takes every core this process may use.
        bundle: whose graphs will be loaded: its precision and engines decide what can run them.
    Raises: ConfigError for an unknown name or thread count; MissingDependencyError where the
        engine is not installed; BackendError where the hardware or a library is missing, or
        nothing runs graphs of that precision.
    """
    if not isinstance(name, str):
        return name
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads must be at least 1; got {threads}. Leave it out to use all cores."
        )
    if name == "auto" or name in CHAIN:
        from unblemish.runtime.backends.choose import choose

        return choose(name, threads, bundle)
    if name == "openvino":
        from unblemish.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(threads)
    if name == "torch":
        from unblemish.runtime.backends.torch import TorchBackend

        return TorchBackend(threads)
    raise ConfigError(f"unknown backend '{name}'; choose one of: auto, {', '.join(BACKENDS)}.")
