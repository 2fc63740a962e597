"""Whole inspections with an autoencoder whose search is on the device, against those of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend

from unblemish.bundle import Bundle
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.backends import Backend, open_backend
from unblemish.runtime.inspector import Inspector

MakeBundle = Callable[..., Bundle]
Device = tuple[Backend, CudaKernels]
CALIBRATION = {
    "pixel_threshold": 0.1, "image_threshold": 0.15, "false_reject_rate": 0.01, "normals": 10,
    "seed": 0,
}  # fmt: skip


def _frame(seed: int, height: int = 20, width: int = 24, *, bad: bool = True) -> Any:
    """A smooth frame, uint8, with a bright blemish if it is bad."""
    rng = np.random.default_rng(seed)
    down = np.cos(np.pi * np.outer((np.arange(height) + 0.5) / height, np.arange(3)))
    across = np.cos(np.pi * np.outer((np.arange(width) + 0.5) / width, np.arange(3)))
    image = down @ rng.uniform(-1, 1, (3, 3)) @ across.T
    frame = np.rint(130 + 60 * image / np.abs(image).max()).astype(np.uint8)
    if bad:
        frame[6:11, 8 + seed % 4 : 14] = 255
    return frame


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Engines and kernels of the double, and ONNX Runtime's on the GPU where there is one."""
    if request.param == "gpu":
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
        return open_backend("ort-cuda", 1), CudaKernels()
    return EmulatedBackend(), request.getfixturevalue("kernels")


@contextmanager
def _both(bundle: Bundle, device: Device, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Inspectors of the host and of the device."""
    backend, kernels = device
    with (
        Inspector.open(bundle, backend="onnxruntime", threads=1, **options) as host,
        Inspector.open(bundle, backend=backend, kernels=kernels, **options) as ours,
    ):
        yield host, ours


def _searched_there(inspector: Any) -> bool:
    return bool(inspector._open()._device._held)


def _same(found: Any, expected: Any) -> None:
    assert found.verdict == expected.verdict
    assert found.status == expected.status
    assert found.steps == expected.steps
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.score, expected.score, atol=2e-4)
    apart = np.abs(found.restored.astype(int) - expected.restored)
    assert apart.max() <= 1  # of 255, where a rounding falls the other way


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("geometry", ["stretch", "tiles"])
def test_inspections_are_those_of_the_cpu(
    make_energy_bundle: MakeBundle, device: Device, schedule: str, geometry: str
) -> None:
    bundle = make_energy_bundle(
        energy={"score": "l2", "lam": 0.02, "alpha": 0.3, "max_steps": 20},
        calibration=CALIBRATION, preprocess={"geometry": geometry},
    )  # fmt: skip
    frames = [_frame(seed, bad=seed % 3 != 0) for seed in range(5)]
    with _both(bundle, device, schedule=schedule) as (host, ours):
        for found, expected in zip(
            ours.inspect_many(frames), host.inspect_many(frames), strict=True
        ):
            _same(found, expected)
        assert _searched_there(ours)
        _same(ours.inspect(frames[1]), host.inspect(frames[1]))
        assert {i.verdict for i in ours.inspect_many(frames)} == {"pass", "fail"}


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_holes_and_restored_frames_are_those_of_the_cpu(
    make_energy_bundle: MakeBundle, device: Device, schedule: str
) -> None:
    bundle = make_energy_bundle(energy={"alpha": 0.3, "lam": 0.02, "max_steps": 30})
    frame, hole = _frame(1), np.zeros((20, 24), np.bool_)
    hole[5:12, 7:15] = True
    with _both(bundle, device, schedule=schedule) as (host, ours):
        filled, expected = ours.inpaint(frame, hole), host.inpaint(frame, hole)
        found, wanted = ours.restore(frame), host.restore(frame)
        assert _searched_there(ours)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    np.testing.assert_allclose(filled.astype(int), expected, atol=1)
    np.testing.assert_array_equal(found.hole, wanted.hole)
    np.testing.assert_allclose(found.image.astype(int), wanted.image, atol=1)


@pytest.mark.parametrize("refine", ["none", "gradient-error", "latent"])
def test_other_refinements_stay_on_the_host(
    make_energy_bundle: MakeBundle, device: Device, refine: str
) -> None:
    bundle, frame = make_energy_bundle(latent=True), _frame(2)
    with _both(bundle, device, refine=refine) as (host, ours):
        found, expected = ours.search(frame), host.search(frame)
        np.testing.assert_allclose(found.score, expected.score, atol=2e-4)
        assert not _searched_there(ours)
        hole = np.zeros((20, 24), np.bool_)
        hole[4:7, 4:9] = True
        ours.inpaint(frame, hole)
        assert _searched_there(ours)


def test_other_settings_of_the_same_files_are_taken_over(
    make_energy_bundle: MakeBundle, device: Device
) -> None:
    bundle, frame = make_energy_bundle(energy={"lam": 0.02}), _frame(1)
    with _both(bundle, device) as (host, ours):
        values = []
        for lam in (0.01, 0.05):
            for one in (host, ours):
                one.adopt(bundle.with_energy(lam=lam))
            found, expected = ours.search(frame), host.search(frame)
            np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-4)
            values.append(found.objective)
        assert ours.search(frame, lam=0.01).objective == pytest.approx(values[0], rel=1e-5)
    assert values[0] < values[1]
