"""One ONNX graph to one TensorRT engine, by TensorRT 10 and 11 alike.

Networks are strongly typed: precision is that of the graph's own tensors. Nothing here is used that
TensorRT 11 removed (precision flags of the builder, INT8 calibrators, implicit batches).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from unblemish.errors import BackendError, ModelError
from unblemish.export.engines.options import EngineOptions, Hardware
from unblemish.runtime.backends.tensorrt_log import Log, Recorder, lengths, trt, version

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input of symbolic shape -> smallest, usual and largest shape."""


@dataclass(frozen=True)
class Built:
    """A serialised engine, and what the builder learned of this device's kernels."""

    engine: bytes
    timings: bytes


class Builder:
    """Builds engines one after the other with one set of settings; needs a GPU.

    Args:
        timings: of earlier builds on this device, see `Built`; empty at the first. Timings of
            another device or version are refused by TensorRT and then not used.
    """

    def __init__(self, options: EngineOptions, timings: bytes = b"") -> None:
        self._options = options
        self._log = Log()
        self._recorder = Recorder(self._log)
        self._builder = trt.Builder(self._log)
        self._builder.error_recorder = self._recorder
        self.timings = timings

    def build(self, model: bytes, name: str, ranges: Ranges) -> Built:
        """Build one engine.

        Args:
            model: ONNX graph with its weights.
            name: role of the graph, for messages.
            ranges: of every input with a symbolic dimension.
        Raises: ModelError where TensorRT refuses the graph, naming the node; BackendError where it
            cannot build an engine.
        """
        network = self._builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        network.name = name
        self._parse(network, model, name)
        config = self._configure()
        self._add_profile(config, network, ranges, name)
        cache = self._load_timings(config)
        serialised = self._builder.build_serialized_network(network, config)
        if serialised is None:
            raise BackendError(
                f"TensorRT cannot build an engine of graph '{name}': {self._log.take()}. "
                "Give it more memory (--workspace), or run the graph with another backend."
            )
        self.timings = _content(cache.serialize())
        return Built(_content(serialised), self.timings)

    def _parse(self, network: trt.INetworkDefinition, model: bytes, name: str) -> None:
        parser = trt.OnnxParser(network, self._log)
        if parser.parse(model):
            return
        found = [_said(parser.get_error(i)) for i in range(parser.num_errors)]
        reason = "; ".join(found) or self._log.take()
        raise ModelError(
            f"TensorRT's parser refuses graph '{name}': {reason}. "
            "Export the bundle again with --target tensorrt, which says so beforehand."
        )

    def _configure(self) -> trt.IBuilderConfig:
        options = self._options
        config = self._builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        config.builder_optimization_level = options.level
        if not options.tf32:  # it is on by default
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.refit:
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware != "none":
            config.hardware_compatibility_level = _level(options.hardware)
        return config

    def _add_profile(
        self, config: trt.IBuilderConfig, network: trt.INetworkDefinition, ranges: Ranges, name: str
    ) -> None:
        profile = self._builder.create_optimization_profile()
        symbolic = [t for t in _inputs(network) if -1 in lengths(t.shape)]
        for tensor in symbolic:
            if tensor.name not in ranges:
                raise ModelError(
                    f"graph '{name}': the sizes of input '{tensor.name}' are not known, and an "
                    "engine is built for a range of them. Export the bundle again."
                )
            least, usual, most = ranges[tensor.name]
            profile.set_shape(tensor.name, trt.Dims(least), trt.Dims(usual), trt.Dims(most))
        if symbolic and config.add_optimization_profile(profile) < 0:
            raise BackendError(
                f"TensorRT refuses the range of sizes of graph '{name}': {self._log.take()}. "
                "This is a fault of unblemish."
            )

    def _load_timings(self, config: trt.IBuilderConfig) -> trt.ITimingCache:
        cache = config.create_timing_cache(self.timings)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            self._log.take()
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache


def _level(hardware: Hardware) -> trt.HardwareCompatibilityLevel:
    """Raises: BackendError where this TensorRT is older than the level."""
    levels = trt.HardwareCompatibilityLevel
    if hardware == "ampere+":
        return levels.AMPERE_PLUS
    if not hasattr(levels, "SAME_COMPUTE_CAPABILITY"):
        raise BackendError(
            f"TensorRT {version()} cannot build engines for hardware '{hardware}'. "
            "Use a newer one, or 'none'."
        )
    return levels.SAME_COMPUTE_CAPABILITY


def _inputs(network: trt.INetworkDefinition) -> list[trt.ITensor]:
    return [network.get_input(i) for i in range(network.num_inputs)]


def _said(error: trt.ParserError) -> str:
    where = f"node '{error.node_name()}' ({error.node_operator()})"
    return f"{where}: {' '.join(error.desc().split()).rstrip('. ')}"


def _content(memory: trt.IHostMemory) -> bytes:
    return bytes(cast(Any, memory))  # a buffer, which its published signatures do not say
