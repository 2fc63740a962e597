"""Which engine runs, and why not the others."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from unblemish.errors import BackendError, ConfigError
from unblemish.runtime.backends import CHAIN, choose, open_backend
from unblemish.runtime.backends.choose import choice_line, obstacle_of
from unblemish.runtime.backends.nvidia import Gpu
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.ort_device import OrtDeviceBackend

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def bundle(precision: str = "fp32", files: tuple[str, ...] = ()) -> Any:
    manifest = SimpleNamespace(precision=precision, files=dict.fromkeys(files))
    return SimpleNamespace(path=Path("part.bundle"), manifest=manifest)


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
        monkeypatch.setattr(choose.importlib.util, "find_spec", found)

    return set_up


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
    assert obstacle_of("tensorrt", bundle(files=("engines/0.plan",))) is None


def test_tensorrt_hands_what_it_cannot_run_to_the_rest_of_the_chain(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_engines(*, fallback: Any) -> Any:
        return SimpleNamespace(name="tensorrt", fallback=fallback)

    machine(ALL, packages=TRT, gpu=GPU, broken=("ort-tensorrt",))
    engines = SimpleNamespace(TensorRtBackend=open_engines)
    monkeypatch.setitem(sys.modules, "unblemish.runtime.backends.tensorrt", engines)
    backend: Any = open_backend(bundle=bundle("fp16", ("engines/0.plan",)))
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
