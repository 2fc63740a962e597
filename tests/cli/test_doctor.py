"""`unblemish doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import onnxruntime as ort
import pytest

from unblemish.doctor import examination, examine, probes

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
