"""The building half of the double: logger, builder, network, parser, configuration, profile."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import onnx
from checked import Checked, ViolationError

PLAN = b"double-plan "
TIMINGS = b"double-timings "
_PRECISION = ("FP16", "INT8", "BF16", "FP8", "INT4", "FP4")
_TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 2: "UINT8", 6: "INT32", 7: "INT64",
          9: "BOOL"}  # fmt: skip


class Dims(Checked):
    def __init__(self, shape: Any = ()) -> None:
        self._shape = tuple(int(d) for d in shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, index: int) -> int:
        return self._shape[index]

    def __iter__(self) -> Any:  # the bindings have none: by index alone
        raise ViolationError("Dims has no __iter__ in the published signatures")


class ILogger(Checked):
    def __init__(self) -> None:
        self._ready = True


class IErrorRecorder(Checked):
    def __init__(self) -> None:
        self._ready = True


class IHostMemory(Checked):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


def _logger(logger: Any) -> Any:
    if not getattr(logger, "_ready", False):
        raise ViolationError("a logger must call ILogger.__init__")
    return weakref.ref(logger)


def fail(owner: Any, logger: Any, text: str) -> None:
    """Report an error as the library does: to the recorder where there is one, else to the log."""
    recorder = owner.__dict__.get("error_recorder")
    if recorder is not None:
        recorder.report_error(owner.world.classes["ErrorCodeTRT"].INVALID_ARGUMENT, text)
    else:
        logger().log(owner.world.classes["ILogger"].Severity.ERROR, text)


class Builder(Checked):
    def __init__(self, logger: Any) -> None:
        self._log = _logger(logger)
        self._tie(logger=logger)

    def create_network(self, flags: int = 0) -> Any:
        made = self.world.classes["INetworkDefinition"](flags)
        made._tie(builder=self)
        return made

    def create_builder_config(self) -> Any:
        made = self.world.classes["IBuilderConfig"]()
        made._tie(builder=self)
        return made

    def create_optimization_profile(self) -> Any:
        made = self.world.classes["IOptimizationProfile"]()
        made._tie(builder=self)
        return made

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        network._alive("build")
        config._alive("build")
        config._check_cache()
        if network._model is None:
            raise ViolationError("a network was built that no parser filled")
        typed = network._flags >> int(
            self.world.classes["NetworkDefinitionCreationFlag"].STRONGLY_TYPED
        )
        names = {flag.name for flag in config._flags}
        if typed & 1 and names.intersection(_PRECISION):
            raise ViolationError(f"precision flags {names} with a strongly typed network")
        config._built = True
        if self.world.broken:
            fail(self, self._log, "out of memory while timing kernels")
            return None
        missing = [t for t in network._inputs if -1 in t._shape and t.name not in config._ranges()]
        if missing or not config._fits(network._inputs):
            fail(self, self._log, f"no profile for the dynamic input {[t.name for t in missing]}")
            return None
        content = {
            "version": self.world.version, "name": network.name, "tensors": network._tensors(),
            "ranges": config._ranges(), "flags": sorted(names), "model": network._digest,
            "scratch": 1000 * len(network._tensors()),
        }  # fmt: skip
        return self.world.classes["IHostMemory"](PLAN + json.dumps(content).encode())


class INetworkDefinition(Checked):
    name = "unnamed"

    def __init__(self, flags: int) -> None:
        self._flags, self._model, self._digest = flags, None, ""
        self._inputs: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def _fill(self, model: onnx.ModelProto) -> None:
        self._model = model
        weights = {t.name for t in model.graph.initializer}
        for value in model.graph.input:
            if value.name not in weights:
                tensor = self.world.classes["ITensor"](value)
                tensor._tie(network=self)
                self._inputs.append(tensor)

    def _tensors(self) -> list[dict[str, Any]]:
        assert self._model is not None
        graph = self._model.graph
        weights = {t.name for t in graph.initializer}
        sides = (("INPUT", graph.input), ("OUTPUT", graph.output))
        return [
            {"name": v.name, "mode": mode, "dtype": _TYPES[v.type.tensor_type.elem_type],
             "dims": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]}
            for mode, side in sides for v in side if v.name not in weights
        ]  # fmt: skip


class ITensor(Checked):
    name = ""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        object.__setattr__(self, "name", value.name)
        dims = value.type.tensor_type.shape.dim
        self._shape = tuple(-1 if d.dim_param else d.dim_value for d in dims)

    @property
    def shape(self) -> Any:
        self._alive("shape")
        return self.world.classes["Dims"](self._shape)


class ParserError(Checked):
    def __init__(self, node: onnx.NodeProto, text: str) -> None:
        self._node, self._text = node, text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return self._node.name or self._node.output[0]

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser(Checked):
    def __init__(self, network: Any, logger: Any) -> None:
        _logger(logger)
        self._tie(network=network, logger=logger)
        self._network = weakref.ref(network)
        self._errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        network = self._network()
        if network._model is not None:
            raise ViolationError("one network was parsed into twice")
        proto = onnx.load_from_string(model)
        outside = [t.name for t in proto.graph.initializer if t.external_data]
        if outside and path is None:
            raise ViolationError(f"weights {outside} are in another file, and no path was given")
        for node in proto.graph.node:
            if node.op_type in self.world.refused:
                error = self.world.classes["ParserError"](node, self.world.refused[node.op_type])
                self._errors.append(error)
        if not self._errors:
            network._fill(proto)
            network._digest = hashlib.sha256(model).hexdigest()
            self.world.models[network._digest] = bytes(model)
        return not self._errors

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class IOptimizationProfile(Checked):
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}
        self._added = False

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if self._added:
            raise ViolationError("a profile was changed after it was added")
        shapes = [tuple(s._shape) for s in (min, opt, max)]
        if len({len(s) for s in shapes}) > 1:
            raise ViolationError(f"shapes of different rank for {input}: {shapes}")
        if not all(0 <= a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise ViolationError(f"min <= opt <= max does not hold for {input}: {shapes}")
        self._shapes[input] = shapes


class ITimingCache(Checked):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return self.world.classes["IHostMemory"](self._content)


class IBuilderConfig(Checked):
    def __init__(self) -> None:
        self._flags = {self.world.classes["BuilderFlag"].TF32}  # on by default
        self._profiles: list[Any] = []
        self._built = False
        self._cache: Any = None

    def _on_set(self, name: str, value: Any) -> None:
        self._open(name)

    def _open(self, what: str) -> None:
        if self._built:
            raise ViolationError(f"IBuilderConfig.{what} after the engine was built")

    def _check_cache(self) -> None:
        if self._cache is not None and self._cache() is None:
            raise ViolationError("the timing cache died before the build")

    def set_flag(self, flag: Any) -> None:
        self._open("set_flag")
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._open("clear_flag")
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._open("set_memory_pool_limit")

    def add_optimization_profile(self, profile: Any) -> int:
        self._open("add_optimization_profile")
        profile._alive("add")
        if not profile._shapes:
            return -1
        profile._added = True
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        self._open("create_timing_cache")
        own = TIMINGS + self.world.version.encode()
        return self.world.classes["ITimingCache"](bytes(serialized_timing_cache) or own)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._open("set_timing_cache")
        fits = cache._content == TIMINGS + self.world.version.encode()
        if fits or ignore_mismatch:
            self._cache = weakref.ref(cache)
        return fits or ignore_mismatch

    def _ranges(self) -> dict[str, Any]:
        return self._profiles[0] if self._profiles else {}

    def _fits(self, inputs: list[Any]) -> bool:
        for tensor in inputs:
            for shape in self._ranges().get(tensor.name, ()):
                fixed = zip(shape, tensor._shape, strict=True)
                if any(want not in (-1, have) for have, want in fixed):
                    return False
        return True
