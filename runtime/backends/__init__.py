"""Execution engines behind one protocol, loaded when they are asked for."""

from __future__ import annotations

from unblemish.errors import ConfigError
from unblemish.runtime.backends.protocol import Backend, Pair, Program, TensorSpec

__all__ = ["BACKENDS", "Backend", "Pair", "Program", "TensorSpec", "open_backend"]

BACKENDS = ("onnxruntime", "openvino", "torch", "tensorrt")


def open_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """Open an engine family by name.

    Args:
        name: 'auto' (ONNX Runtime), or one of `BACKENDS`.
        threads: threads of each engine; None takes every core this process may use.
    Raises: ConfigError for an unknown name or thread count; MissingDependencyError where the
        engine is not installed.
    """
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads must be at least 1; got {threads}. Leave it out to use all cores."
        )
    if name in ("auto", "onnxruntime"):
        from unblemish.runtime.backends.onnxruntime import OrtBackend

        return OrtBackend(threads)
    if name == "openvino":
        from unblemish.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(threads)
    if name == "torch":
        from unblemish.runtime.backends.torch import TorchBackend

        return TorchBackend(threads)
    if name == "tensorrt":
        from unblemish.runtime.backends.tensorrt import TensorRtBackend

        return TensorRtBackend()
    raise ConfigError(f"unknown backend '{name}'; choose one of: auto, {', '.join(BACKENDS)}.")
