"""A recorded-call double of TensorRT's Python API: its signatures, order and lifetimes; no results.

A test tool. It refuses what the library would refuse or be broken by: unknown names and arguments,
objects used after what they depend on died, a configuration changed after the build, inputs without
profile, engines of another version, unset shapes or addresses, memory that is too small, unaligned,
not filled or given back, another stream; a context captured before it ran with its shapes, changed
after it was captured, or gone when the graph is launched.
"""

from __future__ import annotations

import enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import building
import running
from checked import World, bind, enumeration

_ENUMS = ("BuilderFlag", "DataType", "ErrorCodeTRT", "ExecutionContextAllocationStrategy",
          "HardwareCompatibilityLevel", "MemoryPoolType", "NetworkDefinitionCreationFlag",
          "TensorIOMode", "TensorLocation")  # fmt: skip
_BUILDING = ("Dims", "ILogger", "IErrorRecorder", "IHostMemory", "Builder", "INetworkDefinition",
             "ITensor", "ParserError", "OnnxParser", "IOptimizationProfile", "ITimingCache",
             "IBuilderConfig")  # fmt: skip
_RUNNING = ("Runtime", "ICudaEngine", "IExecutionContext")
# Made by other objects, never by their own constructor.
_INNER = {"IHostMemory", "INetworkDefinition", "ITensor", "ParserError", "IOptimizationProfile",
          "ITimingCache", "IBuilderConfig", "ICudaEngine", "IExecutionContext"}  # fmt: skip


def make(version: str) -> tuple[ModuleType, World]:
    """A module that stands for `tensorrt` of this version, and what happens in it."""
    world, module = World(version), ModuleType("tensorrt")
    module.__dict__["__version__"] = version
    module.__spec__ = ModuleSpec("tensorrt", None)  # `find_spec` asks for it
    for name in _ENUMS:
        setattr(module, name, enumeration(world, name))
    for source, names in ((building, _BUILDING), (running, _RUNNING)):
        for name in names:
            made = bind(world, name, getattr(source, name))
            if name not in _INNER:
                setattr(module, name, made)
    for name in _INNER:  # for annotations, which are not evaluated
        setattr(module, name, world.classes[name])
    severity: Any = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")  # type: ignore[misc]
    world.classes["ILogger"].Severity = severity  # type: ignore[attr-defined]
    return module, world
