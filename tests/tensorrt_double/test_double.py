"""The double of TensorRT: that it enforces what it says, and knows the published signatures."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

TYPINGS = Path(os.environ.get("UNBLEMISH_TYPINGS", Path(__file__).parents[3] / "shared/typings"))
MODEL = onnx.parser.parse_model(
    '<ir_version: 9, opset_import: ["": 20]>\n'
    "g (float[batch,4] x) => (float[batch,4] y) { y = Tanh(x) }"
).SerializeToString()


@pytest.fixture
def violation(tensorrt: Any) -> type[Exception]:
    made: type[Exception] = importlib.import_module("checked").ViolationError
    return made


@pytest.fixture
def trt(tensorrt: Any) -> Any:
    return sys.modules["tensorrt"]


@pytest.fixture
def log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.errors.append(msg)

    return Log()


def plan(trt: Any, log: Any) -> bytes:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse(MODEL)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", trt.Dims((1, 4)), trt.Dims((2, 4)), trt.Dims((3, 4)))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


class Running:
    """A runtime, an engine and a context over the double's memory."""

    def __init__(self, trt: Any, world: Any, log: Any) -> None:
        self.memory = world.memory_of(world)
        self.runtime = trt.Runtime(log)
        self.engine = self.runtime.deserialize_cuda_engine(plan(trt, log))
        self.context = self.engine.create_execution_context()
        self.x, self.y = self.memory.allocate(48), self.memory.allocate(48)

    def ready(self, shape: tuple[int, ...] = (2, 4), *, filled: bool = True) -> Any:
        assert self.context.set_input_shape("x", shape)
        self.context.set_tensor_address("x", self.x.address)
        self.context.set_tensor_address("y", self.y.address)
        if filled:
            self.memory.upload(self.x, self.memory.host(shape, np.dtype("f4")))
        return self.context


@pytest.fixture
def running(trt: Any, tensorrt: Any, log: Any) -> Running:
    return Running(trt, tensorrt, log)


@pytest.mark.parametrize("version", ["10", "11"])
def test_table_is_that_of_the_published_signatures(version: str) -> None:
    path = TYPINGS / f"tensorrt{version}" / "tensorrt" / "__init__.pyi"
    if not path.is_file():
        pytest.skip("TensorRT's signatures are not on this machine")
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    try:
        condense = importlib.import_module("condense")
        checked = importlib.import_module("checked")
    finally:
        sys.path.remove(folder)
    assert condense.condense(path.read_text("utf-8")) == checked.SIGNATURES[version]


def test_a_right_run_passes(running: Running) -> None:
    assert running.ready().execute_async_v3(running.memory.stream)


def test_unknown_names_and_arguments_are_refused(trt: Any, log: Any) -> None:
    builder = trt.Builder(log)
    with pytest.raises(AttributeError, match="max_workspace_size"):
        builder.max_workspace_size = 1
    with pytest.raises(AttributeError, match="build_cuda_engine"):
        builder.build_cuda_engine()
    with pytest.raises(TypeError, match="create_network"):
        builder.create_network(explicit=1)
    with pytest.raises(TypeError, match="deserialize_cuda_engine"):
        trt.Runtime(log).deserialize_cuda_engine("path")


def test_flags_that_11_removed_are_gone_there(trt: Any, tensorrt: Any) -> None:
    assert hasattr(trt.BuilderFlag, "FP16") == tensorrt.version.startswith("10")
    assert hasattr(trt.BuilderFlag, "REFIT_IDENTICAL")


def test_objects_must_not_outlive_what_they_hang_on(
    trt: Any, log: Any, running: Running, violation: type[Exception]
) -> None:
    context = running.ready()
    del running.engine
    with pytest.raises(violation, match="after its engine died"):
        context.execute_async_v3(7001)
    network = trt.Builder(log).create_network(0)
    with pytest.raises(violation, match="after its builder died"):
        network.get_input(0)


def test_configuration_is_closed_by_the_build(
    trt: Any, log: Any, violation: type[Exception]
) -> None:
    builder = trt.Builder(log)
    network, config = builder.create_network(0), builder.create_builder_config()
    with pytest.raises(violation, match="no parser filled"):
        builder.build_serialized_network(network, config)
    trt.OnnxParser(network, log).parse(MODEL)
    assert builder.build_serialized_network(network, config) is None
    assert "no profile for the dynamic input" in log.errors[0]
    with pytest.raises(violation, match="after the engine was built"):
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    with pytest.raises(violation, match="after the engine was built"):
        config.builder_optimization_level = 1


def test_profiles_are_ordered(trt: Any, log: Any, violation: type[Exception]) -> None:
    profile = (builder := trt.Builder(log)).create_optimization_profile()
    with pytest.raises(violation, match="does not hold"):
        profile.set_shape("x", trt.Dims((2, 4)), trt.Dims((1, 4)), trt.Dims((3, 4)))
    assert builder.create_builder_config().add_optimization_profile(profile) < 0


def test_timing_cache_has_to_live_until_the_build(
    trt: Any, log: Any, violation: type[Exception]
) -> None:
    builder = trt.Builder(log)
    network, config = builder.create_network(0), builder.create_builder_config()
    trt.OnnxParser(network, log).parse(MODEL)
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    with pytest.raises(violation, match="timing cache died"):
        builder.build_serialized_network(network, config)


def test_execution_needs_shapes_addresses_and_our_stream(
    running: Running, violation: type[Exception]
) -> None:
    stream = running.memory.stream
    with pytest.raises(violation, match="address of 'x' was not set"):
        running.context.execute_async_v3(stream)
    running.context.set_tensor_address("x", running.x.address)
    with pytest.raises(violation, match="shape of input 'x' was not set"):
        running.context.execute_async_v3(stream)
    with pytest.raises(violation, match="before anything filled it"):
        running.ready(filled=False).execute_async_v3(stream)
    for other in (0, 5):
        with pytest.raises(violation, match="not ours"):
            running.ready().execute_async_v3(other)
    with pytest.raises(violation, match="not aligned"):
        running.context.set_tensor_address("x", running.x.address + 4)
    assert not running.context.set_input_shape("x", (4, 4))  # beyond the profile


def test_a_captured_context_ran_before_and_stays_as_it_was(
    running: Running, violation: type[Exception]
) -> None:
    memory = running.memory
    context = running.ready()
    memory.capturing = True
    with pytest.raises(violation, match="before it ran once with these shapes"):
        context.execute_async_v3(memory.stream)
    memory.capturing = False
    assert context.execute_async_v3(memory.stream)
    for shape in ((1, 4), (2, 4)):  # and back: a change all the same
        context.set_input_shape("x", shape)
        memory.capturing = True
        with pytest.raises(violation, match="before it ran once with these shapes"):
            context.execute_async_v3(memory.stream)
        memory.capturing = False
    assert context.execute_async_v3(memory.stream)
    memory.capturing = True
    assert context.execute_async_v3(memory.stream)
    memory.capturing = False
    for change in (
        lambda: context.set_input_shape("x", (2, 4)),
        lambda: context.set_tensor_address("x", running.y.address),
        lambda: context.set_device_memory(running.y.address, 48),
    ):
        with pytest.raises(violation, match="after the context was captured"):
            change()
    assert context.execute_async_v3(memory.stream)  # unchanged


def test_what_cannot_be_captured_is_refused(running: Running, tensorrt: Any, log: Any) -> None:
    context = running.ready()
    assert context.execute_async_v3(running.memory.stream)
    tensorrt.uncapturable.add("unnamed")
    running.memory.capturing = True
    assert not context.execute_async_v3(running.memory.stream)
    assert "not permitted while the stream is capturing" in log.errors[-1]


def test_a_graph_must_not_outlive_its_context(
    running: Running, violation: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Any] = []
    running.ready().execute_async_v3(running.memory.stream)
    monkeypatch.setattr(running.memory, "enqueue", recorded.append)
    running.memory.capturing = True
    running.context.execute_async_v3(running.memory.stream)
    recorded[0]()
    del running.context
    with pytest.raises(violation, match="after its context died"):
        recorded[0]()


def test_memory_between_layers_is_given_where_it_was_asked_to_be(
    trt: Any, running: Running, violation: type[Exception]
) -> None:
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    with pytest.raises(violation, match="manages its memory itself"):
        running.context.set_device_memory(running.x.address, 48)
    with pytest.raises(violation, match="manages its memory itself"):
        running.context.update_device_memory_size_for_shapes()
    running.context = running.engine.create_execution_context(strategy)
    with pytest.raises(violation, match="before it was given the memory for its shapes"):
        running.ready().execute_async_v3(running.memory.stream)
    size = running.engine.device_memory_size_v2
    scratch = running.memory.allocate(size)
    for address, much in ((scratch.address, size - 1), (scratch.address + 8, size)):
        with pytest.raises(violation, match="do not do"):
            running.context.set_device_memory(address, much)
    running.context.set_device_memory(scratch.address, size)
    assert running.context.execute_async_v3(running.memory.stream)
    less = running.context.update_device_memory_size_for_shapes()  # of 2 rows where 3 are most
    assert 0 < less < size
    running.context.set_device_memory(scratch.address, less)
    assert running.context.execute_async_v3(running.memory.stream)
    running.ready((3, 4))
    with pytest.raises(violation, match="before it was given the memory for its shapes"):
        running.context.execute_async_v3(running.memory.stream)
    running.ready((2, 4))
    running.context.set_device_memory(scratch.address, size)
    del scratch
    with pytest.raises(violation, match="'scratch' lies in memory that was given back"):
        running.context.execute_async_v3(running.memory.stream)


def test_memory_has_to_be_alive_and_large_enough(
    running: Running, violation: type[Exception]
) -> None:
    context = running.ready()
    running.y = running.memory.allocate(16)
    with pytest.raises(violation, match="given back"):
        context.execute_async_v3(running.memory.stream)
    context.set_tensor_address("y", running.y.address)
    with pytest.raises(violation, match="needs 32 bytes, its memory has 16"):
        context.execute_async_v3(running.memory.stream)
    with pytest.raises(violation, match="not page-locked"):
        running.memory.upload(running.x, np.zeros((2, 4), np.float32))
    with pytest.raises(violation, match="nothing had filled"):
        running.memory.download(running.memory.host((4,), np.dtype("f4")), running.y)


def test_copies_happen_when_the_stream_was_waited_for(running: Running) -> None:
    running.ready().execute_async_v3(running.memory.stream)
    array = running.memory.host((2, 4), np.dtype("f4"))
    running.memory.download(array, running.y)
    assert (array == 7).all()
    running.memory.synchronise()
    assert not (array == 7).any()


def test_plans_of_other_versions_are_refused(trt: Any, log: Any, tensorrt: Any) -> None:
    runtime = trt.Runtime(log)
    other = plan(trt, log).replace(tensorrt.version.encode(), b"9.9.9.9")
    assert runtime.deserialize_cuda_engine(other) is None
    assert runtime.deserialize_cuda_engine(b"no plan") is None
    assert [e for e in log.errors if "version 9.9.9.9" in e or "magic tag" in e] == log.errors
