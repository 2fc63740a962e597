"""Detectors whose features stay on the device against those of the host."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from tiny_detectors import CHANNELS, HEIGHT, METHODS, WIDTH, normal_frames, spoilt, tiny_detector

from unblemish.bundle import Bundle
from unblemish.errors import BackendError
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.crops import Box
from unblemish.runtime.detectors.crops import Versions
from unblemish.runtime.detectors.load import Detector, load_detector
from unblemish.runtime.device.detectors import cell_scores, features
from unblemish.runtime.device.detectors.detector import DeviceDetector, on_device
from unblemish.runtime.device.detectors.scoring import DeviceVersions
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.methods.decomposition import View
from unblemish.runtime.resampling import Axis

# float32 sums of ten products in another order; CFLOW-AD's pass through exponentials.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}
Make = Callable[..., Bundle]


@pytest.fixture(scope="module")
def make_detector(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_detector(method, camera=1, **settings): see `tiny_detector`; each is made once."""

    @cache
    def make(method: str, camera: int = 1, **settings: Any) -> Bundle:
        settings = {"dilation": 3, "beta": 0.02, **settings}
        return tiny_detector(tmp_path_factory.mktemp("detector"), method, camera, **settings)

    return make


class Picky(EmulatedBackend):
    """Its engines were made for some shapes of 'image' alone, and flows for so many vectors."""

    def __init__(self, takes: Callable[[tuple[int, ...]], bool]) -> None:
        super().__init__()
        self.takes = takes

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        engines = super().on_device(kernels)
        plain = engines.single

        def single(path: str, inputs: Mapping[str, Any]) -> Any:
            shape = next(iter(inputs.values())).shape
            if not self.takes(shape):
                raise BackendError(f"the engine was not made for {shape}")
            return plain(path, inputs)

        engines.single = single  # type: ignore[method-assign]
        return engines


def both(bundle: Bundle, kernels: Any, backend: Any = None) -> tuple[Detector, DeviceDetector]:
    backend = backend or EmulatedBackend()
    host = load_detector(bundle, backend)
    found = on_device(bundle, host, backend.on_device(kernels))
    assert isinstance(found, DeviceDetector)
    return host, found


def images(count: int, camera: int = 1, seed: int = 7) -> np.ndarray:
    frames = normal_frames(count, camera, seed).reshape(count, HEIGHT, WIDTH, camera)
    frames[::2, 20:30, 20:50] = 230
    found = frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(found)


@pytest.mark.parametrize(
    ("method", "camera"), [*((method, 1) for method in METHODS), ("patchcore", 3), ("cflow", 3)]
)
def test_maps_are_those_of_the_host(
    make_detector: Make, any_engines: Any, method: str, camera: int
) -> None:
    host, device = both(make_detector(method, camera), *any_engines)
    for count in (1, 3):
        shown = images(count, camera, seed=count)
        cells = device.cells(shown)
        np.testing.assert_allclose(cells, host.cells(shown), **CLOSE)
        assert len(np.unique(cells)) > 100
        np.testing.assert_allclose(device.tiles(shown).maps(), host.plain(shown), **CLOSE)


def test_many_images_take_several_launches(
    make_detector: Make, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_PIXELS", 3 * HEIGHT * WIDTH)  # two at once
    host, device = both(make_detector("patchcore"), kernels)
    np.testing.assert_allclose(device.cells(images(3)), host.cells(images(3)), **CLOSE)
    assert [batch for batch, _ in device.scoring.passes._held] == [2]


def view_of(image: np.ndarray, box: Box, window: Box, scale: int, rng: Any) -> View:
    """A crop of a model image, seen by a window of a frame `scale` times as large."""
    frame = rng.random((image.shape[0], HEIGHT * scale, WIDTH * scale)).astype(np.float32)
    rows, columns = Axis(HEIGHT * scale, HEIGHT, 0, HEIGHT), Axis(WIDTH * scale, WIDTH, 0, WIDTH)
    down = rows.matrix((box.top, box.bottom), (window.top, window.bottom))
    across = columns.matrix((box.left, box.right), (window.left, window.right))
    base = frame[(slice(None), *window.slices)]
    seen = image[(slice(None), *box.slices)]
    return View(base[None], seen[None].copy(), down[None], across.T[None].copy(), 0.3)


def versions_of(view: View, count: int, rng: Any) -> np.ndarray:
    changed = np.repeat(view.base, count, axis=0)
    changed[:, :, 3:9, 4:11] = rng.random((count, changed.shape[1], 6, 7))
    return changed.astype(np.float32)


@pytest.mark.parametrize(
    ("box", "window", "scale"),
    [
        (Box(16, 24, 48, 64), Box(25, 30, 40, 51), 1),
        (Box(0, 0, 24, 40), Box(0, 0, 21, 30), 2),
        (Box(48, 56, 72, 96), Box(160, 200, 216, 288), 3),
        (Box(0, 0, HEIGHT, WIDTH), Box(20, 20, 41, 51), 1),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_versions_of_a_crop_score_as_on_the_host(
    make_detector: Make, any_engines: Any, method: str, box: Box, window: Box, scale: int, rng: Any
) -> None:
    host, device = both(make_detector(method), *any_engines)
    shown = images(2)
    view = view_of(shown[1], box, window, scale, rng)
    ours, theirs = (d.tiles(shown).versions(1, box, view) for d in (device, host))
    assert isinstance(ours, DeviceVersions)
    for count in (3, 1):
        windows = versions_of(view, count, rng)
        found = ours.scores(windows)
        np.testing.assert_allclose(found, theirs.scores(windows), **CLOSE)
        assert found.shape == (count, box.area // 16)


def test_crops_may_take_turns_and_features_be_gone(
    make_detector: Make, kernels: Any, rng: Any
) -> None:
    host, device = both(make_detector("cflow"), kernels)
    shown = images(3)
    ours, theirs = device.tiles(shown), host.tiles(shown)
    crops: list[tuple[Versions, Versions, View]] = []
    for tile, box in enumerate((Box(16, 24, 48, 64), Box(40, 40, 72, 80), Box(0, 0, 24, 40))):
        view = view_of(shown[tile], box, Box(20, 30, 44, 64), 1, rng)
        crops.append((ours.versions(tile, box, view), theirs.versions(tile, box, view), view))
    device.cells(images(2, seed=5))  # in the memory where the features were
    for _ in range(2):
        for mine, other, view in crops:
            windows = versions_of(view, 2, rng)
            np.testing.assert_allclose(mine.scores(windows), other.scores(windows), **CLOSE)


def test_passes_for_which_there_is_no_room_are_made_again(
    make_detector: Make, kernels: Any, rng: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_MEMORY", 1)
    host, device = both(make_detector("cflow"), kernels)
    shown = images(1)
    ours, theirs = device.tiles(shown), host.tiles(shown)
    for box in (Box(16, 24, 48, 64), Box(0, 0, 24, 40)) * 2:
        view = view_of(shown[0], box, Box(20, 30, 44, 64), 1, rng)
        windows = versions_of(view, 2, rng)
        found, expected = (t.versions(0, box, view).scores(windows) for t in (ours, theirs))
        np.testing.assert_allclose(found, expected, **CLOSE)
        assert len(device.scoring.passes._held) == 1


@pytest.mark.parametrize("most", [1, 2])
def test_engines_for_few_images_take_the_others_in_turn(
    make_detector: Make, kernels: Any, rng: Any, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    host, device = both(make_detector("padim"), kernels, Picky(lambda shape: shape[0] <= most))
    box = Box(16, 24, 48, 64)
    view = view_of(images(1)[0], box, Box(25, 30, 50, 71), 1, rng)
    windows = versions_of(view, 3, rng)
    ours, theirs = (d.tiles(images(1)).versions(0, box, view) for d in (device, host))
    np.testing.assert_allclose(ours.scores(windows), theirs.scores(windows), **CLOSE)
    np.testing.assert_allclose(device.cells(images(3)), host.cells(images(3)), **CLOSE)
    assert max(batch for batch, _ in device.scoring.passes._held) == most
    assert not caplog.records


@pytest.mark.parametrize(
    ("method", "takes", "size"),
    [
        ("padim", lambda shape: shape[2:] == (HEIGHT, WIDTH), "32 x 40"),
        ("patchcore", lambda shape: shape[2:] != (HEIGHT, WIDTH), "72 x 96"),
        ("cflow", lambda shape: len(shape) == 4 or shape[0] == 18 * 24, "32 x 40"),
    ],
)
def test_sizes_that_no_engine_was_made_for_are_scored_on_the_host(
    make_detector: Make,
    kernels: Any,
    rng: Any,
    caplog: pytest.LogCaptureFixture,
    method: str,
    takes: Callable[[Any], bool],
    size: str,
) -> None:
    host, device = both(make_detector(method), kernels, Picky(takes))
    box = Box(16, 24, 48, 64)
    view = view_of(images(1)[0], box, Box(25, 30, 50, 71), 1, rng)
    with caplog.at_level(logging.WARNING, "unblemish"):
        for _ in range(2):
            np.testing.assert_allclose(device.cells(images(1)), host.cells(images(1)), **CLOSE)
            windows = versions_of(view, 3, rng)
            ours, theirs = (d.tiles(images(1)).versions(0, box, view) for d in (device, host))
            np.testing.assert_allclose(ours.scores(windows), theirs.scores(windows), **CLOSE)
    assert len(caplog.records) == 1
    assert f"images of {size} are scored on the host: the engine was" in caplog.text


def test_detectors_beyond_the_kernels_limits_stay_on_the_host(
    make_detector: Make,
    kernels: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = EmulatedBackend()
    engines = backend.on_device(kernels)
    for method, limit, words in (
        ("padim", "MOST_CHANNELS", f"{CHANNELS} channels"),
        ("low rank", "MOST_DIRECTIONS", "3 directions"),
    ):
        bundle = make_detector(method)
        host = load_detector(bundle, backend)
        with monkeypatch.context() as patch:
            patch.setattr(cell_scores, limit, 2)
            assert on_device(bundle, host, engines) is host
        assert f"the detector scores on the host: {words}, the kernel takes 2" in caplog.text
    assert len(caplog.records) == 2


def test_a_size_that_was_not_learned_is_refused_as_on_the_host(
    make_detector: Make, kernels: Any
) -> None:
    _, device = both(make_detector("padim"), kernels)
    with pytest.raises(Exception, match="Fit the bundle again"):
        device.cells(np.zeros((1, 1, 64, 64), np.float32))


def opened(bundle: Bundle, kernels: Any, backend: Any = None) -> tuple[Inspector, Inspector]:
    host = Inspector.open(bundle, backend="onnxruntime", threads=1)
    backend = backend or EmulatedBackend()
    return host, Inspector.open(bundle, backend=backend, kernels=kernels)


@pytest.mark.parametrize(
    ("method", "camera"), [*((method, 1) for method in METHODS), ("patchcore", 3)]
)
def test_inspections_are_those_of_the_host(
    make_detector: Make, any_engines: Any, method: str, camera: int
) -> None:
    normal = normal_frames(2, camera, seed=9)
    frames = [
        spoilt(normal[0]),
        spoilt(spoilt(normal[1], (4, 12, 6, 16)), (56, 66, 74, 90)),
    ]
    if method in ("patchcore", "cflow"):  # the others are slow on the double
        frames += [normal[1], np.repeat(np.repeat(spoilt(normal[0]), 2, axis=0), 2, axis=1)]
    host, device = opened(make_detector(method, camera), *any_engines)
    for frame in frames:
        found, expected = device.search(frame), host.search(frame)
        assert (found.status, found.steps) == (expected.status, expected.steps)
        np.testing.assert_array_equal(found.mask, expected.mask)
        np.testing.assert_allclose(found.score, expected.score, **CLOSE)
        np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-3)
        np.testing.assert_array_equal(found.restored, expected.restored)
    ours, theirs = device.inspect(frames[0]), host.inspect(frames[0])
    assert ours.verdict == theirs.verdict
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    assert host.search(frames[0]).mask.any()
    assert isinstance(device._search._detector, DeviceDetector)  # type: ignore[union-attr]
    survey, usual = device.survey(normal[0]), host.survey(normal[0])
    np.testing.assert_allclose((survey.peak, survey.level), (usual.peak, usual.level), rtol=1e-3)


def test_many_frames_are_shown_to_the_detector_together(
    make_detector: Make, kernels: Any, driver: Any
) -> None:
    host, device = opened(make_detector("cflow"), kernels)
    frames = [spoilt(f) if k % 2 else f for k, f in enumerate(normal_frames(5, seed=4))]
    frames[2] = np.repeat(frames[2], 2, axis=0)
    search: Any = device._search
    for found, expected in zip(search.many(frames), host._search.many(frames), strict=True):  # type: ignore[union-attr]
        np.testing.assert_array_equal(found.mask, expected.mask)
        np.testing.assert_allclose(found.score, expected.score, **CLOSE)
        np.testing.assert_allclose(found.evidence, expected.evidence, rtol=1e-3)
    passes = search._detector.scoring.passes._held
    assert [batch for batch, size in passes if size == (HEIGHT, WIDTH)] == [8]
    assert passes[8, (HEIGHT, WIDTH)].run == 1
    assert (search.frames_at_once, host._search.frames_at_once) == (16, 1)  # type: ignore[union-attr]
    verdicts = [inspection.verdict for inspection in device.inspect_many(iter(frames))]
    assert verdicts == [host.inspect(frame).verdict for frame in frames]
    assert len(set(verdicts)) == 2


def test_other_settings_of_the_same_files_are_adopted(make_detector: Make, kernels: Any) -> None:
    bundle = make_detector("cflow")
    host, device = opened(bundle, kernels)
    frame = spoilt(normal_frames(1, seed=9)[0])
    before = device.search(frame)
    record = bundle.manifest.detector
    assert record is not None
    changed = {
        "detector": record.model_copy(update={"smoothing_sigma": 1.0, "cell_level": 3.0}),
        "f2pad": bundle.manifest.f2pad.model_copy(update={"beta": 5.0}),
    }
    other = Bundle(bundle.path, bundle.manifest.model_copy(update=changed))
    for inspector in (host, device):
        inspector.adopt(other)
    found, expected = device.search(frame), host.search(frame)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.score, expected.score, **CLOSE)
    assert found.evidence != before.evidence
    assert found.objective != before.objective


def test_frames_that_are_cut_into_tiles_come_one_by_one(make_detector: Make, kernels: Any) -> None:
    host, device = opened(make_detector("cflow", tiles=True), kernels)
    left, right = normal_frames(2, seed=4)
    frame = np.concatenate([left, spoilt(right)], axis=1)
    search: Any = device._search
    assert search.frames_at_once == 1
    for found in search.many([frame, frame]):
        expected = host.search(frame)
        np.testing.assert_array_equal(found.mask, expected.mask)
        np.testing.assert_allclose(found.score, expected.score, **CLOSE)
    assert {batch for batch, size in search._detector.scoring.passes._held} == {4, 8}


def test_a_network_that_gives_nan_is_a_status(make_detector: Make, kernels: Any) -> None:
    bundle = make_detector("padim")
    device = Inspector.open(bundle, backend=EmulatedBackend(), kernels=kernels)
    model = device._search._detector.scoring.model  # type: ignore[union-attr]
    mean = model._score.keywords["mean"]
    kernels.device.upload(mean, np.full(mean.shape, np.nan, np.float32))
    found = device.search(normal_frames(1)[0])
    assert found.status is Status.NON_FINITE
    assert (found.score == np.finfo(np.float32).max).any()


def test_steady_inspections_allocate_nothing_but_what_crops_lack(
    make_detector: Make, kernels: Any, driver: Any
) -> None:
    device = Inspector.open(make_detector("padim"), backend=EmulatedBackend(), kernels=kernels)
    frame = spoilt(normal_frames(1, seed=9)[0])
    device.search(frame)
    before = driver.allocations
    device.search(frame)
    assert driver.allocations == before + 1  # the correction of one crop


def test_inspection_on_the_host_knows_nothing_of_cuda(make_detector: Make, tmp_path: Path) -> None:
    frame = tmp_path / "frame.npy"
    np.save(frame, normal_frames(1)[0])
    code = (
        "import sys, numpy, unblemish\n"
        f"with unblemish.Inspector.open({str(make_detector('padim').path)!r}, refine='none',"
        f" threads=1) as i:\n    i.search(numpy.load({str(frame)!r}))\n"
        "print([m for m in sys.modules if 'kernels.cuda' in m or 'runtime.device' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
