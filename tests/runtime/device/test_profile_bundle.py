"""The profile of a bundle whose search runs on the double, by the inspector and the command."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from emulated_clock import EmulatedClock
from emulated_driver import EmulatedDriver
from tiny_detectors import STRIDE, tiny_detector

from unblemish.bundle import Bundle
from unblemish.cli import main
from unblemish.images import write_image
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.profiling.device import DeviceProfile, describe, profile_device
from unblemish.runtime.profiling.device.ceilings import Sizes

MakeBundle = Callable[..., Bundle]
SMALL = Sizes(side=16, transferred=1 << 16, backlog=1 << 16)
PER_BYTE = dict.fromkeys(("copy", "upload", "download"), 2.0**-14)
CALIBRATION = {
    "pixel_threshold": 0.1, "image_threshold": 0.15, "false_reject_rate": 0.01, "normals": 10,
    "seed": 0,
}  # fmt: skip
ITERATION = {"p50", "p90", "p99", "samples"}
STAGE = {
    "name", "kind", "count", "milliseconds", "share", "nbytes", "gigabytes", "of_copy", "flops",
    "teraflops", "of_gemm", "bound", "of_limit",
}  # fmt: skip


def _clock() -> EmulatedClock:
    costs = {"reconstruct": 4.0, "event": 0.03125}
    return EmulatedClock(0.25, piece=0.5, node=0.0625, costs=costs, per_byte=PER_BYTE)


def _frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (20, 30), np.uint8) for _ in range(count)]


def _profile(bundle: Bundle, kernels: CudaKernels, **more: Any) -> DeviceProfile | None:
    driver: Any = kernels.device.driver
    return profile_device(
        bundle, EmulatedBackend(**more), _frames(3), seconds=0, kernels=kernels,
        clock=driver.clock, sizes=SMALL,
    )  # fmt: skip


@pytest.mark.parametrize("capturable", [True, False])
def test_steps_of_inspections_are_taken_apart(
    make_energy_bundle: MakeBundle, make_driver: Callable[..., EmulatedDriver], capturable: bool
) -> None:
    kernels = CudaKernels(driver=make_driver(clock=_clock()))
    found = _profile(make_energy_bundle(), kernels, capturable=capturable)
    assert found is not None
    assert found.frames_per_second > 0
    assert found.product == "float32"
    (step,) = found.steps
    assert (step.step, step.batch) == ("DeviceAlternation", 1)
    assert (step.captured is not None) is capturable
    engine = step.stages[0]
    assert (engine.name, engine.kind, engine.count) == ("reconstruct", "engine", 1)
    assert engine.milliseconds == 4.0
    assert step.pieces == sum(stage.milliseconds for stage in step.stages)
    assert step.queued
    assert kernels.device.watch is None


def test_frames_that_are_searched_together_have_a_step_of_their_own(
    make_energy_bundle: MakeBundle, make_driver: Callable[..., EmulatedDriver]
) -> None:
    kernels = CudaKernels(driver=make_driver(clock=_clock()))
    found = _profile(make_energy_bundle(calibration=CALIBRATION), kernels)
    assert found is not None
    assert [step.batch for step in found.steps] == [3]


def test_what_is_not_searched_on_the_device_has_the_ways_of_its_frames_alone(
    make_energy_bundle: MakeBundle, make_driver: Callable[..., EmulatedDriver]
) -> None:
    bundle = make_energy_bundle(calibration={**CALIBRATION, "refine": "error"})  # one pass, no more
    assert profile_device(bundle, OrtBackend(1), _frames(1), seconds=0) is None
    found = _profile(bundle, CudaKernels(driver=make_driver(clock=_clock())))
    assert found is not None
    assert not found.steps
    names = {stage.name for stage in found.outside}
    assert names == {"planes_of_bytes", "resample", "cut_tiles"}


@pytest.mark.parametrize(("role", "name", "shape"), [
    ("features_forward", "image", (2, 3, 16, 16)),
    ("features_backward", "grad_image", (2, 3, 16, 16)),
    ("generator_forward", "z", (2, 4)),
])  # fmt: skip
def test_a_pass_counts_weights_tensors_and_arithmetic(
    rich_bundle: Bundle, role: Any, name: str, shape: tuple[int, ...]
) -> None:
    graph = rich_bundle.manifest.graphs[role].model_copy(update={"flops": 1000})
    assert name in [tensor.name for tensor in (*graph.inputs, *graph.outputs)]
    graphs = {**rich_bundle.manifest.graphs, role: graph}
    counted = dataclasses.replace(
        rich_bundle, manifest=rich_bundle.manifest.model_copy(update={"graphs": graphs})
    )
    array = SimpleNamespace(size=math.prod(shape), shape=shape, nbytes=4 * math.prod(shape))
    other = SimpleNamespace(size=7, shape=(7,), nbytes=28)
    inner: Any = SimpleNamespace(inputs={"kept": other}, outputs={name: array})
    path = rich_bundle.graph(role)
    piece = describe(counted, str(path), inner)
    assert (piece.name, piece.flops) == (role, 2000)
    assert piece.nbytes == path.stat().st_size + array.nbytes + 28


@pytest.mark.parametrize("role", ["flow", "flow_forward", "flow_backward"])
def test_a_pass_of_a_flow_counts_the_cells_of_its_images(tmp_path: Path, role: Any) -> None:
    bundle = tiny_detector(tmp_path, "cflow")
    graph = bundle.manifest.graphs[role]
    p, first = bundle.manifest.preprocess, graph.inputs[0].name
    cells = 3 * (p.height // STRIDE) * (p.width // STRIDE)  # of three images
    array = SimpleNamespace(size=cells, shape=(cells,), nbytes=4 * cells)
    inner: Any = SimpleNamespace(inputs={first: array}, outputs={})
    assert describe(bundle, str(bundle.graph(role)), inner).flops == 3 * graph.flops


@pytest.fixture
def on_double(make_driver: Callable[..., EmulatedDriver], monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's GPU is the double: `auto` finds an engine there, and pycuda's driver is it."""
    driver = make_driver(clock=_clock())
    module = SimpleNamespace(PycudaDriver=lambda device: driver)
    monkeypatch.setitem(sys.modules, "unblemish.kernels.cuda.pycuda_driver", module)
    monkeypatch.setattr(
        "unblemish.runtime.backends.choose._open", lambda name, threads, bundle: EmulatedBackend()
    )
    small = partial(Sizes, SMALL.side, SMALL.transferred, SMALL.backlog)
    monkeypatch.setattr("unblemish.runtime.profiling.device.Sizes", small)


@pytest.mark.usefixtures("on_double")
def test_the_command_adds_the_device(
    make_energy_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, folder = make_energy_bundle(), tmp_path / "frames"
    folder.mkdir()
    write_image(folder / "a.png", _frames(1)[0])
    run = ["profile", str(bundle.path), "--images", str(folder), "--seconds", "0"]
    assert main([*run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"per_image_ms", "per_step_ms", "device"} < set(found)
    device = found["device"]
    assert set(device) == {"gpu", "frames_per_second", "ceilings", "product", "steps", "outside"}
    assert set(device["ceilings"]["gemm"]) == {"float32", "float16"}
    (step,) = device["steps"]
    assert set(step) == {
        "step", "batch", "captured", "uncaptured", "saved", "pieces", "queued", "stages", "advice",
    }  # fmt: skip
    for iteration in (step["captured"], step["uncaptured"]):
        assert set(iteration) == {"device", "host", "gap"}
        assert set(iteration["device"]) == set(iteration["host"]) == ITERATION
    assert all(set(stage) == STAGE for stage in step["stages"])
    assert main(run) == 0
    text = capsys.readouterr().out
    tables = ("a turn of the fast schedule", "batch 1; the graph saves", "in pieces", "energy_step")
    assert all(words in text for words in (*tables, "\ngap ", step["advice"]))


@pytest.mark.gpu
def test_a_gpu_is_measured_at_the_sizes_that_tell(make_energy_bundle: MakeBundle) -> None:
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
    backend = open_backend("ort-cuda", 1)
    found = profile_device(make_energy_bundle(), backend, _frames(3), seconds=0)
    assert found is not None
    (step,) = found.steps
    assert step.queued
    assert 0 < step.pieces < 2 * step.uncaptured.device.p50
    ceilings = found.ceilings
    assert set(ceilings.gemm) == {"float32", "float16"}
    assert ceilings.copy > ceilings.upload > 0
    assert 0 <= ceilings.mark < 0.1
    assert 0 < ceilings.least < 0.1


def test_a_gpu_that_is_not_there_is_refused_as_ever(
    make_energy_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", _frames(1)[0])
    run = ["profile", str(make_energy_bundle().path), "--images", str(tmp_path)]
    assert main([*run, "--backend", "ort-cuda"]) == 2
    assert "backend 'ort-cuda' cannot run" in capsys.readouterr().err
