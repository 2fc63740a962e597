"""`unblemish profile`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unblemish.cli import profile_device, profile_generator
from unblemish.runtime.profiling import Peaks, Times, roofline

Command = Callable[..., Any]

STAGES = {
    "decode", "preprocess", "start", "forward", "backward", "kernels", "terms", "solver", "post",
    "image",
}  # fmt: skip


def test_profile_json_has_stages_steps_and_roofline(run: Command, bundle: Path) -> None:
    result = run("profile", bundle, "--json", "--seconds", 0.05)
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert set(figures["per_image_ms"]) == STAGES
    assert set(figures["per_step_ms"]) == {"forward", "backward", "kernels", "step"}
    for times in (*figures["per_image_ms"].values(), *figures["per_step_ms"].values()):
        assert set(times) == {"p50", "p90", "p99", "samples"}
        assert 0 <= times["p50"] <= times["p90"] <= times["p99"]
    assert figures["baseline"] is None
    assert figures["machine"]["gflops"] > 0
    assert figures["machine"]["gigabytes"] > 0
    assert figures["roofline"]["flops"] == 2 * 2 * 4 * 24 * 24


def test_a_profile_of_the_device_has_no_roofline_of_the_host(run: Command, bundle: Path) -> None:
    figures = json.loads(run("profile", bundle, "--json", "--seconds", 0).out)
    assert "device" not in figures
    joined = profile_device.joined(figures, {"steps": []})
    assert joined["device"] == {"steps": []}
    text = profile_generator.text(joined)
    assert "per step" in text
    assert "roofline" not in text


def test_profile_compares_with_torch(run: Command, bundle: Path) -> None:
    pytest.importorskip("torch")
    figures = json.loads(
        run("profile", bundle, "--json", "--baseline", "torch", "--seconds", 0.05).out
    )
    assert set(figures["baseline"]["per_step_ms"]) == {"forward", "backward", "step"}
    assert figures["baseline"]["speedup"] > 0


def test_profile_prints_tables_for_given_images(run: Command, bundle: Path, parts: Path) -> None:
    result = run("profile", bundle, "--images", parts / "test", "--seconds", 0.05)
    assert result.code == 0, result.err
    for word in ("per image", "per step", "roofline", "GFLOP/s"):
        assert word in result.out


def test_times_are_percentiles() -> None:
    assert Times.of(list(range(101))) == Times(50.0, 90.0, 99.0, 101)


def test_roofline_is_the_larger_of_arithmetic_and_memory(bundle: Path) -> None:
    from unblemish.bundle import Bundle

    manifest = Bundle.open(bundle).manifest
    flops = 2 * 2 * 4 * 24 * 24
    slow_memory = roofline(manifest, Peaks(1e9, "numpy", 1e-3, 1), step_ms=100.0)
    assert slow_memory.limit == "memory"
    assert slow_memory.share == pytest.approx(slow_memory.bytes_moved * 1e-6 / 1e-3 / 100)
    slow_cores = roofline(manifest, Peaks(1e-3, "numpy", 1e9, 1), step_ms=100.0)
    assert slow_cores.limit == "compute"
    assert slow_cores.compute_ms == pytest.approx(flops / 1e6 * 1e3)
    assert slow_cores.gflops == pytest.approx(flops / 0.1 * 1e-9)
