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
from unblemish.runtime.inspector import Inspector

MakeBundle = Callable[..., Bundle]
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


@contextmanager
def _both(bundle: Bundle, kernels: CudaKernels, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Inspectors of the host and of the device."""
    with (
        Inspector.open(bundle, backend="onnxruntime", threads=1, **options) as host,
        Inspector.open(bundle, backend=EmulatedBackend(), kernels=kernels, **options) as device,
    ):
        yield host, device


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
    make_energy_bundle: MakeBundle, kernels: CudaKernels, schedule: str, geometry: str
) -> None:
    bundle = make_energy_bundle(
        energy={"score": "l2", "lam": 0.02, "alpha": 0.3, "max_steps": 20},
        calibration=CALIBRATION, preprocess={"geometry": geometry},
    )  # fmt: skip
    frames = [_frame(seed, bad=seed % 3 != 0) for seed in range(5)]
    driver: Any = kernels.device.driver
    with _both(bundle, kernels, schedule=schedule) as (host, device):
        for found, expected in zip(
            device.inspect_many(frames), host.inspect_many(frames), strict=True
        ):
            _same(found, expected)
        assert driver.launched
        _same(device.inspect(frames[1]), host.inspect(frames[1]))
        assert {i.verdict for i in device.inspect_many(frames)} == {"pass", "fail"}


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_holes_and_restored_frames_are_those_of_the_cpu(
    make_energy_bundle: MakeBundle, kernels: CudaKernels, schedule: str
) -> None:
    bundle = make_energy_bundle(energy={"alpha": 0.3, "lam": 0.02, "max_steps": 30})
    frame, hole = _frame(1), np.zeros((20, 24), np.bool_)
    hole[5:12, 7:15] = True
    with _both(bundle, kernels, schedule=schedule) as (host, device):
        filled, expected = device.inpaint(frame, hole), host.inpaint(frame, hole)
        found, wanted = device.restore(frame), host.restore(frame)
    assert kernels.device.driver.launched  # type: ignore[attr-defined]
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    np.testing.assert_allclose(filled.astype(int), expected, atol=1)
    np.testing.assert_array_equal(found.hole, wanted.hole)
    np.testing.assert_allclose(found.image.astype(int), wanted.image, atol=1)


@pytest.mark.parametrize("refine", ["none", "gradient-error", "latent"])
def test_other_refinements_stay_on_the_host(
    make_energy_bundle: MakeBundle, kernels: CudaKernels, refine: str
) -> None:
    bundle, frame = make_energy_bundle(latent=True), _frame(2)
    with _both(bundle, kernels, refine=refine) as (host, device):
        found, expected = device.search(frame), host.search(frame)
        np.testing.assert_array_equal(found.score, expected.score)
        assert not kernels.device.driver.launched  # type: ignore[attr-defined]
        hole = np.zeros((20, 24), np.bool_)
        hole[4:7, 4:9] = True
        device.inpaint(frame, hole)
    assert kernels.device.driver.launched  # type: ignore[attr-defined]


def test_other_settings_of_the_same_files_are_taken_over(
    make_energy_bundle: MakeBundle, kernels: CudaKernels
) -> None:
    bundle, frame = make_energy_bundle(energy={"lam": 0.02}), _frame(1)
    with _both(bundle, kernels) as (host, device):
        values = []
        for lam in (0.01, 0.05):
            for one in (host, device):
                one.adopt(bundle.with_energy(lam=lam))
            found, expected = device.search(frame), host.search(frame)
            np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-4)
            values.append(found.objective)
        assert device.search(frame, lam=0.01).objective == values[0]
    assert values[0] < values[1]
