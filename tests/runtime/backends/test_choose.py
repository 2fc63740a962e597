"""Which engine runs, and why not the others."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from unblemish.bundle.engines import Device, graph_digest, this_system
from unblemish.bundle.manifest import EngineRecord, FileRecord, Graph
from unblemish.errors import BackendError, ConfigError
from unblemish.runtime.backends import CHAIN, choose, open_backend
from unblemish.runtime.backends.choose import choice_line, obstacle_of
from unblemish.runtime.backends.nvidia import Gpu
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.ort_device import OrtDeviceBackend

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def bundle(precision: str = "fp32", engines: tuple[EngineRecord, ...] = ()) -> Any:
    """A bundle of one graph."""
    graph = Graph(file="graphs/encoder.onnx", inputs=(), outputs=(), flops=1)
    files = {graph.file: FileRecord(bytes=1, sha256="1" * 64)}
    manifest = SimpleNamespace(
        precision=precision, files=files, graphs={"encoder": graph}, engines=engines
    )
    return SimpleNamespace(path=Path("part.bundle"), manifest=manifest)


def engine(**changes: Any) -> EngineRecord:
    """An engine of that graph for `HERE`."""
    fields = {
        "file": "engines/0.engine", "role": "encoder", "tensorrt": HERE.tensorrt,
        "capability": HERE.capability, "system": HERE.system,
        "graph_sha256": graph_digest(bundle().manifest, "encoder"),
    }  # fmt: skip
    return EngineRecord.model_validate({**fields, **changes})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what is there: providers, packages, GPU, and which providers work."""

    def set_up(
        providers: list[str] = ALL[2:],
        packages: tuple[str, ...] = (),
        gpu: Gpu | str = "no NVIDIA driver is installed",
        broken: tuple[str, ...] = (),
    ) -> None:
        def probe(name: str) -> choose.Obstacle | None:
            reason = "its libraries cannot be loaded"
            return choose.Obstacle(reason, "Install.", absent=False) if name in broken else None

        def found(name: str, *_: Any) -> Any:
            return object() if name in packages or name not in known else None

        known = set(TRT)
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers))
        monkeypatch.setattr(choose, "find_gpu", lambda: gpu)
        monkeypatch.setattr(choose, "_probe_obstacle", probe)
        monkeypatch.setattr(choose, "_this_device", lambda: HERE)
        monkeypatch.setattr(choose.importlib.util, "find_spec", found)

    return set_up


HERE = Device("10.16.1.11", "8.9", "linux-x86_64")
GPU = Gpu("L4", (8, 9), (12, 8))
TRT = ("tensorrt", "pycuda", "unblemish.runtime.backends.tensorrt")


def test_auto_on_a_machine_without_a_gpu_is_the_cpu(
    machine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    machine()
    with caplog.at_level(logging.INFO, "unblemish"):
        assert isinstance(open_backend(), OrtBackend)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("engine: onnxruntime (not tensorrt: ")
    assert all(f"not {name}: " in record.getMessage() for name in CHAIN[:3])


@pytest.mark.parametrize(
    ("broken", "name"), [((), "ort-tensorrt"), (("ort-tensorrt",), "ort-cuda")]
)
def test_auto_takes_the_first_that_works(machine: Any, broken: tuple[str, ...], name: str) -> None:
    machine(ALL, gpu=GPU, broken=broken)
    backend = open_backend(bundle=bundle("fp16"))
    assert isinstance(backend, OrtDeviceBackend)
    assert backend.name == name


def test_auto_warns_where_a_gpu_lies_idle(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(gpu=GPU)
    assert isinstance(open_backend(), OrtBackend)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "built without CUDAExecutionProvider" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "there", "told"),
    [
        ("tensorrt", {}, "package tensorrt is not installed.*pip install"),
        ("tensorrt", {"packages": TRT[:1]}, "package pycuda is not installed"),
        ("tensorrt", {"packages": TRT}, "no NVIDIA driver"),
        ("ort-cuda", {"gpu": GPU}, "built without CUDAExecutionProvider.*pip"),
        ("ort-cuda", {"providers": ALL}, "no NVIDIA driver is installed.*Install NVIDIA"),
        ("ort-cuda", {"providers": ALL, "gpu": Gpu("K80", (3, 7), (11, 4))}, "capability 3.7.*7.5"),
        ("ort-cuda", {"providers": ALL, "gpu": GPU, "broken": ("ort-cuda",)}, "cannot be loaded"),
    ],
)
def test_engine_asked_for_says_why_it_cannot(
    machine: Any, name: str, there: dict[str, Any], told: str
) -> None:
    machine(**there)
    with pytest.raises(BackendError, match=f"backend '{name}' cannot run: .*{told}"):
        open_backend(name)


def test_bundle_without_engines_is_no_tensorrt_bundle(machine: Any) -> None:
    machine(packages=TRT, gpu=GPU)
    obstacle = obstacle_of("tensorrt", bundle())
    assert obstacle is not None
    assert "holds no TensorRT engines" in obstacle.reason
    assert "build-engines part.bundle" in obstacle.advice
    assert obstacle_of("tensorrt", bundle(engines=(engine(),))) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"capability": "8.7"}, "there are some of TensorRT 10.16.1.11, compute capability 8.7"),
        ({"tensorrt": "10.3.0.30"}, "there are some of TensorRT 10.3.0.30, compute"),
        ({"system": "linux-aarch64"}, "8.9, linux-aarch64"),
        ({"graph_sha256": "0" * 64}, "those for it are of graphs that have changed since"),
    ],
)
def test_engines_for_another_device_or_graph_are_named(
    machine: Any, changes: dict[str, Any], said: str
) -> None:
    machine(packages=TRT, gpu=GPU)
    obstacle = obstacle_of("tensorrt", bundle(engines=(engine(**changes),)))
    assert obstacle is not None
    assert f"no engines for {HERE}; " in obstacle.reason
    assert said in obstacle.reason
    assert "build-engines part.bundle" in obstacle.advice


def test_engines_that_others_load_too_are_for_this_device(machine: Any) -> None:
    machine(packages=TRT, gpu=GPU)
    for changes in (
        {"capability": "8.0", "hardware": "ampere+"},
        {"tensorrt": "10.3.0.30", "version_compatible": True},
    ):
        assert obstacle_of("tensorrt", bundle(engines=(engine(**changes),))) is None


def test_tensorrt_that_does_not_load_is_broken(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    machine(packages=TRT, gpu=GPU)
    monkeypatch.setattr(choose, "_this_device", refuse)
    obstacle = obstacle_of("tensorrt", bundle(engines=(engine(),)))
    assert obstacle is not None
    assert obstacle.reason.startswith("libnvinfer.so.10")
    assert not obstacle.absent


def test_device_is_that_of_the_driver_and_the_library(
    tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "find_gpu", lambda: GPU)
    assert choose._this_device() == Device(tensorrt.version, "8.9", this_system())


def test_doctor_says_what_engines_there_are(machine: Any) -> None:
    from unblemish.doctor.examination import _chain

    machine(packages=TRT, gpu=GPU)
    finding = _chain(bundle(engines=(engine(capability="8.7"),)))[0]
    assert finding.part == "tensorrt"
    assert finding.state == "absent"
    assert "compute capability 8.7" in finding.detail
    assert finding.advice == "unblemish build-engines part.bundle"
    finding = _chain(bundle(engines=(engine(),)))[0]
    assert finding.state == "works"
    assert finding.detail == "engines of 1 of 1 graphs, runs with --backend auto"


def test_tensorrt_hands_what_it_cannot_run_to_the_rest_of_the_chain(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_engines(*, fallback: Any) -> Any:
        return SimpleNamespace(name="tensorrt", fallback=fallback)

    machine(ALL, packages=TRT, gpu=GPU, broken=("ort-tensorrt",))
    engines = SimpleNamespace(TensorRtBackend=open_engines)
    monkeypatch.setitem(sys.modules, "unblemish.runtime.backends.tensorrt", engines)
    backend: Any = open_backend(bundle=bundle("fp16", (engine(),)))
    assert backend.name == "tensorrt"
    assert backend.fallback().name == "ort-cuda"


def test_bfloat16_needs_a_gpu(machine: Any) -> None:
    machine()
    with pytest.raises(BackendError, match=r"no engine runs this bundle here: .*no bfloat16"):
        open_backend(bundle=bundle("bf16"))
    with pytest.raises(BackendError, match=r"--precision fp32"):
        open_backend("onnxruntime", bundle=bundle("bf16"))


def test_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, tensorrt, ort-tensorrt, ort-cuda, onnxruntime"):
        open_backend("gpu")


def test_line_of_a_choice_without_refusals() -> None:
    assert choice_line("tensorrt", {}) == "engine: tensorrt"


def test_probe_runs_the_graph_that_doctor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host, through the path of the devices; and wrong numbers are an obstacle."""
    monkeypatch.setattr(choose, "_open", lambda name, *_: OrtDeviceBackend("ort-cpu", 1))
    assert choose._probe_obstacle.__wrapped__("ort-cuda") is None
    monkeypatch.setattr(choose.np, "allclose", lambda *_: False)
    obstacle = choose._probe_obstacle.__wrapped__("ort-cuda")
    assert obstacle is not None
    assert not obstacle.absent
