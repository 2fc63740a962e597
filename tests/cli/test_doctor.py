"""`unblemish doctor`."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from unblemish.doctor import examination, examine, kernel_probes, kernel_samples, probes
from unblemish.doctor.packages import PACKAGES
from unblemish.errors import BackendError
from unblemish.kernels import default_kernels
from unblemish.kernels.cuda import CudaKernels, modules
from unblemish.kernels.fallback import NumpyKernels
from unblemish.kernels.reference import ReferenceKernels
from unblemish.runtime.backends import nvidia

Command = Callable[..., Any]


def test_doctor_finds_this_machine_fit(run: Command) -> None:
    result = run("doctor")
    assert result.code == 0
    assert "Images can be inspected here." in result.out


def test_doctor_json_has_every_group(run: Command) -> None:
    report = json.loads(run("doctor", "--json").out)
    assert report["healthy"] is True
    groups = {"packages", "kernels", "backends", "providers", "video"}
    assert groups < set(report)
    for finding in (finding for group in groups for finding in report[group]):
        assert set(finding) == {"part", "state", "detail", "advice", "needed"}
        assert finding["state"] in {"works", "absent", "broken"}
        assert finding["state"] == "works" or finding["advice"]


def test_doctor_runs_the_cpu_provider(run: Command) -> None:
    report = json.loads(run("doctor", "--json").out)
    cpu = [f for f in report["providers"] if f["part"] == "CPUExecutionProvider"]
    assert [finding["state"] for finding in cpu] == ["works"]


def test_doctor_states_a_provider_that_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    gpu, cpu = examine().groups["providers"]
    assert (gpu.state, cpu.state) == ("broken", "works")
    assert "NVIDIA" in gpu.advice


def test_doctor_exits_with_2_when_a_needed_part_is_absent(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "installed_version", lambda package: None)
    result = run("doctor")
    assert result.code == 2
    assert "pip install numpy" in result.out
    assert "Images cannot be inspected." in result.out


def test_probe_fails_for_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_BORDER", 25.0)
    assert "wrong numbers" in (probes.probe_backend("onnxruntime") or "")


def test_doctor_names_the_kernels_and_their_instruction_set(run: Command) -> None:
    kernels = default_kernels()
    found, _ = json.loads(run("doctor", "--json").out)["kernels"]
    assert (found["part"], found["state"]) == (kernels.name, "works")
    expected = f"{kernels.instruction_set} (of" if kernels.name == "cpu" else "not compiled"
    assert expected in found["detail"]


def test_samples_are_those_of_the_whole_protocol() -> None:
    assert len(kernel_samples.methods()) >= 22
    assert kernel_probes.differing(NumpyKernels()) == []
    for name in kernel_samples.methods():
        for array in kernel_samples.run(ReferenceKernels(), name):
            assert np.isfinite(array.astype(float)).all(), name


def test_kernels_that_do_nothing_differ_in_every_method() -> None:
    idle: Any = SimpleNamespace(**{name: lambda **_: None for name in kernel_samples.methods()})
    idle.all_finite = lambda x: False
    assert kernel_probes.differing(idle) == kernel_samples.methods()


def test_doctor_names_the_kernels_that_give_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(self: Any, n: Any, weight: Any, *, gradient: Any, value: Any) -> None:
        gradient += 1

    monkeypatch.setattr(type(default_kernels()), "total_variation", off)
    found, _ = examine().groups["kernels"]
    assert (found.state, found.detail) == ("broken", "wrong numbers from total_variation")


def test_doctor_survives_kernels_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise AttributeError("no attribute 'mahalanobis'")

    monkeypatch.setattr(type(default_kernels()), "mahalanobis", missing)
    found, _ = examine().groups["kernels"]
    assert found.state == "broken"
    assert "no attribute 'mahalanobis'" in found.detail
    assert not examine().healthy


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, pycuda and nvcc."""
    found = nvidia.Gpu("A GPU", (9, 0), (13, 0))
    monkeypatch.setattr(nvidia, "find_gpu", lambda: found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(modules, "find_nvcc", lambda: "/opt/nvcc")


def _cuda() -> examination.Finding:
    return examination._cuda_kernels()


def test_doctor_says_why_the_cuda_kernels_do_not_run(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "has_binaries", lambda: False)
    monkeypatch.setattr(modules, "find_nvcc", lambda: None)
    assert (_cuda().state, "UNBLEMISH_CUDA=ON" in _cuda().advice) == ("absent", True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (_cuda().state, _cuda().advice) == ("absent", "pip install 'unblemish[cuda]'")
    monkeypatch.setattr(nvidia, "find_gpu", lambda: "the NVIDIA driver sees no GPU")
    assert (_cuda().state, _cuda().detail) == ("absent", "the NVIDIA driver sees no GPU")
    assert not _cuda().needed


def test_doctor_runs_the_cuda_kernels(
    gpu: None, monkeypatch: pytest.MonkeyPatch, make_driver: Callable[..., Any]
) -> None:
    driver = make_driver()
    monkeypatch.setattr(kernel_probes, "_cuda_kernels", lambda: CudaKernels(driver=driver))
    assert (_cuda().state, _cuda().detail) == (
        "works",
        "compute capability 9.0, compiled here by /opt/nvcc",
    )
    assert set(driver.launched) >= {"adam", "dssim", "share_gradient", "mahalanobis", "energy_step"}
    monkeypatch.setattr(modules, "has_binaries", lambda: True)
    assert _cuda().detail.endswith("fat binaries")
    monkeypatch.setattr(CudaKernels, "adam", lambda self, **_: None)
    assert (_cuda().state, _cuda().detail) == ("broken", "wrong numbers from adam")


def test_doctor_states_cuda_kernels_that_fail(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise BackendError("CUDA failed at cuInit: initialization error")

    monkeypatch.setattr(kernel_probes, "_cuda_kernels", fail)
    assert (_cuda().state, _cuda().detail) == (
        "broken",
        "CUDA failed at cuInit: initialization error",
    )
    assert examine().healthy


def test_doctor_knows_the_packages_of_the_install_and_no_others() -> None:
    """Each under the extra that brings it: an advice that does not help is worse than none."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    stated = {("", _name(line)) for line in project["dependencies"]}
    for extra, lines in project["optional-dependencies"].items():
        stated |= {(extra, _name(line)) for line in lines if extra not in ("all", "test")}
    stated = {(extra, name) for extra, name in stated if name != "unblemish"}
    known = {(package.extra, name) for package in PACKAGES for name in package.distributions}
    assert stated - known <= {("cuda", "onnxruntime-gpu")}  # known under the core install
    assert all(
        any((package.extra, name) in stated for name in package.distributions)
        for package in PACKAGES
    )


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def test_show_keeps_a_long_path_whole(run: Command, bundle: Path, tmp_path: Path) -> None:
    far = tmp_path / ("deep" * 20) / "plate.bundle"
    shutil.copytree(bundle, far)
    shown = run("show", far).out
    assert str(far) in "".join(line.strip() for line in shown.splitlines())
