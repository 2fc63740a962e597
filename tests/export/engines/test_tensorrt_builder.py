"""The builder against the double: what it asks TensorRT for, and what becomes of refusals."""

from __future__ import annotations

import enum
import sys
from typing import Any

import onnx
import pytest

from unblemish.errors import BackendError, ConfigError, ModelError
from unblemish.export.engines.options import EngineOptions

MODEL = onnx.parser.parse_model(
    '<ir_version: 9, opset_import: ["": 20]>\n'
    "g (float[batch,4] x) => (float[batch,4] y) { t = Tanh(x) y = Relu(t) }"
).SerializeToString()
RANGES = {"x": ((1, 4), (2, 4), (8, 4))}


def builder(**changes: Any) -> Any:
    from unblemish.export.engines.tensorrt_builder import Builder

    return Builder(EngineOptions(**changes))


def flags(world: Any, method: str) -> list[str]:
    return [flag.name for (flag,) in world.called("IBuilderConfig", method)]


def test_networks_are_strongly_typed_and_exact(tensorrt: Any) -> None:
    built = builder().build(MODEL, "generator", RANGES)
    (created,) = tensorrt.called("Builder", "create_network")
    typed = tensorrt.classes["NetworkDefinitionCreationFlag"].STRONGLY_TYPED
    assert created[0] >> int(typed) & 1
    assert flags(tensorrt, "clear_flag") == ["TF32"]
    assert flags(tensorrt, "set_flag") == []
    assert tensorrt.called("IBuilderConfig", "hardware_compatibility_level=") == []
    assert built.engine
    assert built.timings


def test_options_become_flags_that_both_versions_have(tensorrt: Any) -> None:
    builder(
        tf32=True,
        refit=True,
        version_compatible=True,
        hardware="ampere+",
        workspace=5 << 20,
        level=1,
    ).build(MODEL, "generator", RANGES)
    assert flags(tensorrt, "clear_flag") == []
    assert flags(tensorrt, "set_flag") == ["REFIT_IDENTICAL", "VERSION_COMPATIBLE"]
    ((level,),) = tensorrt.called("IBuilderConfig", "hardware_compatibility_level=")
    assert level.name == "AMPERE_PLUS"
    ((pool, size),) = tensorrt.called("IBuilderConfig", "set_memory_pool_limit")
    assert (pool.name, size) == ("WORKSPACE", 5 << 20)
    assert tensorrt.called("IBuilderConfig", "builder_optimization_level=") == [(1,)]


def test_level_that_an_older_version_lacks_is_an_error(tensorrt: Any) -> None:
    builder(hardware="same-capability").build(MODEL, "generator", RANGES)
    older = enum.IntEnum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    sys.modules["tensorrt"].HardwareCompatibilityLevel = older  # type: ignore[attr-defined]
    builder(hardware="ampere+").build(MODEL, "generator", RANGES)
    with pytest.raises(BackendError, match="cannot build engines for hardware 'same-capability'"):
        builder(hardware="same-capability").build(MODEL, "generator", RANGES)


def test_batch_has_a_profile(tensorrt: Any) -> None:
    builder().build(MODEL, "generator", RANGES)
    ((name, *shapes),) = tensorrt.called("IOptimizationProfile", "set_shape")
    assert name == "x"
    assert [tuple(s[i] for i in range(len(s))) for s in shapes] == [(1, 4), (2, 4), (8, 4)]


def test_inputs_without_a_range_are_refused_before_tensorrt_is(tensorrt: Any) -> None:
    with pytest.raises(ModelError, match="sizes of input 'x' are not known"):
        builder().build(MODEL, "generator", {})
    assert tensorrt.called("Builder", "build_serialized_network") == []


def test_timings_of_one_build_serve_the_next(tensorrt: Any) -> None:
    from unblemish.export.engines.tensorrt_builder import Builder

    first = builder().build(MODEL, "generator", RANGES)
    again = Builder(EngineOptions(), first.timings).build(MODEL, "generator", RANGES)
    assert again.timings == first.timings
    given = tensorrt.called("IBuilderConfig", "create_timing_cache")
    assert given == [(b"",), (first.timings,)]


def test_timings_of_another_version_are_left(tensorrt: Any) -> None:
    from unblemish.export.engines.tensorrt_builder import Builder

    Builder(EngineOptions(), b"timings of version 9").build(MODEL, "generator", RANGES)
    given = tensorrt.called("IBuilderConfig", "create_timing_cache")
    assert given == [(b"timings of version 9",), (b"",)]


def test_refusal_of_the_parser_names_the_node(tensorrt: Any) -> None:
    tensorrt.refused["Tanh"] = "Assertion failed: \n  no such layer."
    with pytest.raises(
        ModelError, match=r"graph 'encoder': node 't' \(Tanh\): Assertion failed: no"
    ):
        builder().build(MODEL, "encoder", RANGES)


def test_failed_build_says_what_tensorrt_said(tensorrt: Any) -> None:
    tensorrt.broken = True
    with pytest.raises(BackendError, match=r"graph 'encoder': out of memory while timing"):
        builder().build(MODEL, "encoder", RANGES)


@pytest.mark.parametrize(
    "changes",
    [{"batch": 0}, {"batch": 2}, {"level": 6}, {"workspace": 1}, {"hardware": "all"},
     {"sizes": ((8, 8), (0, 5))}],
)  # fmt: skip
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EngineOptions(**changes)
