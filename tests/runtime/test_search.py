"""Search and Inspector on tiny generators: answers, deadlines, failures, threads, leaks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish import Inspection, Inspector, Status
from unblemish.bundle import Bundle
from unblemish.errors import BundleError, ConfigError, ShapeError, SourceError
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

Part = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
MakeBundle = Any


def as_uint8(frame: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(frame * 255).astype(np.uint8)


@pytest.fixture
def inspector(tiny_bundle: Bundle) -> Inspector:
    return Inspector.open(tiny_bundle, threads=1)


def test_inspect_finds_the_planted_defect(inspector: Inspector, part: Part) -> None:
    frame, clean, truth = part
    inspection = inspector.inspect(frame)
    np.testing.assert_array_equal(inspection.mask, truth)
    assert inspection.verdict == "fail"
    assert inspection.status is Status.CONVERGED
    assert inspection.regions[0].area == truth.sum()
    assert inspection.restored.dtype == frame.dtype
    np.testing.assert_allclose(inspection.restored, clean, atol=0.01)
    residual = np.sqrt(np.square(frame - inspection.restored).mean(axis=2))
    np.testing.assert_allclose(inspection.score, residual, atol=1e-5)


def test_inspect_passes_a_normal_part(inspector: Inspector, part: Part) -> None:
    inspection = inspector.inspect(part[1])
    assert inspection.verdict == "pass"
    assert not inspection.mask.any()
    assert inspection.regions == ()


@pytest.mark.parametrize(
    "convert",
    [
        as_uint8,
        lambda f: np.rint(f * 65535).astype(np.uint16),
        lambda f: f.astype(np.float64),
        lambda f: np.dstack([as_uint8(f), np.full((16, 16), 200, np.uint8)]),
        lambda f: np.asfortranarray(as_uint8(f)),
    ],
)
def test_inspect_takes_every_kind_of_frame(
    inspector: Inspector, part: Part, convert: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    frame = convert(part[0])
    inspection = inspector.inspect(frame)
    np.testing.assert_array_equal(inspection.mask, part[2])
    assert inspection.restored.dtype == frame.dtype
    assert inspection.restored.shape == (16, 16, 3)


def test_inspect_reports_at_the_cameras_resolution(inspector: Inspector, part: Part) -> None:
    large = np.kron(as_uint8(part[0]), np.ones((5, 3, 1), np.uint8))
    inspection = inspector.inspect(large)
    truth = np.kron(part[2], np.ones((5, 3), np.bool_))
    assert inspection.mask.shape == inspection.score.shape == (80, 48)
    # Between model pixels the restored image is interpolated, the frame here is not.
    assert (inspection.mask & truth).sum() / truth.sum() > 0.95


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (333, 7)])
def test_inspect_takes_awkward_sizes(inspector: Inspector, shape: tuple[int, int]) -> None:
    inspection = inspector.inspect(np.full(shape, 128, np.uint8))
    assert inspection.mask.shape == shape
    assert np.isfinite(inspection.score).all()


@pytest.mark.parametrize(
    "frame",
    [
        None,
        "part.png",
        np.zeros((2, 2), np.int64),
        np.zeros((0, 5), np.uint8),
        np.full((4, 4), np.nan),
    ],
)
def test_inspect_refuses_what_is_no_frame_and_goes_on(
    inspector: Inspector, part: Part, frame: Any
) -> None:
    with pytest.raises(SourceError):
        inspector.inspect(frame)
    assert inspector.inspect(part[0]).verdict == "fail"


def test_grey_models_take_colour_frames_and_tiles(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(channels=1, preprocess={"geometry": "tiles", "overlap": 0.5})
    search = Search(bundle, SearchOptions(threads=1))
    found = search(np.full((40, 27, 3), 90, np.uint8))
    assert found.restored.shape == (40, 27)
    assert len(found.z) == search._geometry.tiles((40, 27)) > 1
    assert len(found.trace) == found.steps


def test_tiles_are_searched_one_by_one_or_together_alike(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(preprocess={"geometry": "tiles"})
    frame = np.random.default_rng(0).random((40, 40, 3)).astype(np.float32)
    search = Search(bundle, SearchOptions(threads=1))
    together = search(frame)
    search._engines.batch = 1
    single = search(frame)
    # Noise is far from the manifold, so the objective is flat: compare what it reached.
    assert single.objective == pytest.approx(together.objective, rel=0.05)


def test_refine_none_is_the_first_pass(tiny_bundle: Bundle, part: Part) -> None:
    plain = Inspector.open(tiny_bundle, threads=1, refine="none").inspect(part[0])
    assert plain.status is Status.PLAIN
    assert plain.steps == 0
    assert plain.trace == ()
    refined = Inspector.open(tiny_bundle, threads=1).inspect(part[0])
    assert refined.objective < plain.objective


@pytest.mark.parametrize("start", ["encoder", "random", "zero"])
def test_search_begins_where_the_settings_say(
    make_bundle: MakeBundle, part: Part, start: str
) -> None:
    bundle = make_bundle(rgi={"start": start, "lam": 0.02})
    search = Search(bundle, SearchOptions(threads=1, refine="none"))
    found = search(part[0])
    if start == "zero":
        np.testing.assert_array_equal(found.z, 0)
    if start == "encoder":
        image = part[0].transpose(2, 0, 1)[None]
        np.testing.assert_allclose(found.z, search._engines.encode(image), rtol=1e-5)
    if start == "random":
        bank = search._starter.bank
        assert bank is not None
        assert (bank.latents == found.z).all(axis=1).any()


def test_extras_enter_the_objective(make_bundle: MakeBundle, part: Part) -> None:
    objectives = []
    for weight in (0.0, 0.1):
        rgi = {"lam": 0.02, "discriminator_weight": weight, "feature_weight": weight}
        rgi["latent_weight"] = weight
        bundle = make_bundle(rgi=rgi, extras=True)
        found = Search(bundle, SearchOptions(threads=1))(part[0])
        assert found.status is Status.CONVERGED
        objectives.append(found.objective)
    assert objectives[1] > objectives[0] + 0.01


def test_search_uses_the_lambda_it_is_given(tiny_bundle: Bundle, part: Part) -> None:
    search = Search(tiny_bundle, SearchOptions(threads=1))
    wide, narrow = (search(part[0], lam=lam).mask > 0 for lam in (1e-4, 0.3))
    assert narrow.sum() < wide.sum()
    with pytest.raises(ConfigError, match="lam"):
        search(part[0], lam=0)


def test_previous_frame_is_a_start(tiny_bundle: Bundle, part: Part) -> None:
    inspector = Inspector.open(tiny_bundle, threads=1)
    first = inspector.inspect(part[0])
    second = inspector.inspect(part[0], previous=first)
    assert second.steps < first.steps
    np.testing.assert_array_equal(second.mask, first.mask)
    assert second.objective <= first.objective * (1 + 1e-3)
    with pytest.raises(ShapeError, match="previous"):
        inspector.inspect(part[0], previous=np.zeros((3, 4), np.float32))


def test_inspect_many_gives_what_inspect_gives(inspector: Inspector, part: Part) -> None:
    frames = [part[0], part[1], as_uint8(part[0]), np.flip(part[0], axis=1)] * 3
    together = list(inspector.inspect_many(iter(frames)))
    assert len(together) == 12
    assert list(inspector.inspect_many([])) == []
    for frame, one in zip(frames, together, strict=True):
        alone = inspector.inspect(frame)
        assert one.verdict == alone.verdict
        assert (one.mask != alone.mask).mean() < 0.02  # sums of another batch run in another order


class Clock:
    """Seconds that pass with every look at the clock."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 50.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.mark.parametrize("deadline_ms", [1, 40, 80])
def test_deadline_is_kept_and_the_best_so_far_returned(
    tiny_bundle: Bundle, part: Part, deadline_ms: float
) -> None:
    clock = Clock(0.002)
    search = Search(tiny_bundle, SearchOptions(threads=1), clock=clock)
    search(part[0])  # learns how long the rest takes
    began = clock.now
    found = search(part[0], deadline_ms=deadline_ms)
    assert found.status is Status.DEADLINE
    assert found.restored.shape == part[0].shape
    # Ten looks at the clock lie between the loop's last and the end; they take 20 ms.
    assert 1000 * (clock.now - began) <= deadline_ms + 20


def test_deadline_leaves_time_to_decide(tiny_bundle: Bundle, part: Part) -> None:
    clock = Clock(0.001)
    inspector = Inspector.open(tiny_bundle, threads=1, clock=clock, deadline_ms=40)
    free = inspector.inspect(part[0], deadline_ms=1e6)
    held = inspector.inspect(part[0])
    assert free.status is Status.CONVERGED
    assert held.status is Status.DEADLINE
    assert held.steps < free.steps
    assert held.timings["total"] <= 50
    with pytest.raises(ConfigError, match="deadline_ms"):
        inspector.inspect(part[0], deadline_ms=0)


def test_generator_that_gives_nan_never_passes_a_part(make_bundle: MakeBundle, part: Part) -> None:
    bundle = make_bundle()
    inspector = Inspector.open(bundle, threads=1)
    engine = inspector._search._engines.generator  # type: ignore[union-attr]
    forward = engine.forward
    engine.forward = lambda *a: forward(*a) * np.float32(np.nan)  # type: ignore[method-assign]
    inspection = inspector.inspect(part[1])
    assert inspection.status is Status.NON_FINITE
    assert inspection.verdict == "fail"
    assert inspection.mask.all()
    assert np.isfinite(inspection.score).all()


def test_results_belong_to_the_caller(inspector: Inspector, part: Part) -> None:
    frame = part[0].copy()
    first = inspector.inspect(frame)
    copies = {
        name: np.array(getattr(first, name)) for name in ("mask", "score", "restored", "latent")
    }
    inspector.inspect(1 - frame)
    for name, copy in copies.items():
        np.testing.assert_array_equal(getattr(first, name), copy)
    first.score[:] = 7
    first.latent[:] = 7  # type: ignore[index]
    np.testing.assert_array_equal(frame, part[0])
    np.testing.assert_array_equal(inspector.inspect(frame).score, copies["score"])


def test_inspector_is_deterministic(tiny_bundle: Bundle, part: Part) -> None:
    results = [Inspector.open(tiny_bundle, threads=1).inspect(part[0]) for _ in range(2)]
    np.testing.assert_array_equal(results[0].score, results[1].score)
    assert results[0].trace == results[1].trace


def test_inspector_is_safe_in_threads(inspector: Inspector, part: Part) -> None:
    frames = [part[0], part[1], np.flip(part[0], axis=0), np.flip(part[1], axis=1)]
    expected = [inspector.inspect(frame) for frame in frames]
    results: dict[int, Inspection] = {}

    def work(index: int) -> None:
        results[index] = inspector.inspect(frames[index % 4])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    for index, result in results.items():
        np.testing.assert_array_equal(result.score, expected[index % 4].score)


def test_closed_inspector_says_so(tiny_bundle: Bundle, part: Part) -> None:
    with Inspector.open(tiny_bundle, threads=1) as inspector:
        inspector.inspect(part[0])
    inspector.close()
    with pytest.raises(ConfigError, match="closed"):
        inspector.inspect(part[0])


def test_uncalibrated_bundle_searches_but_does_not_decide(
    make_bundle: MakeBundle, part: Part
) -> None:
    inspector = Inspector.open(make_bundle(calibrated=False), threads=1)
    assert inspector.search(part[0]).status is Status.CONVERGED
    with pytest.raises(ConfigError, match="not calibrated"):
        inspector.inspect(part[0])
    with pytest.raises(ConfigError, match="not calibrated"):
        next(inspector.inspect_many([part[0]]))


def test_open_names_the_graph_that_is_missing(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(rgi={"discriminator_weight": 0.1})
    with pytest.raises(BundleError, match="discriminator_forward"):
        Inspector.open(bundle, threads=1)
    with pytest.raises(ConfigError, match="unknown backend"):
        Inspector.open(bundle, backend="abacus")


def _resident() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_inspections_leak_neither_memory_nor_files_nor_threads(
    tiny_bundle: Bundle, part: Part
) -> None:
    inspector = Inspector.open(tiny_bundle, threads=1, max_steps=8)
    frames = [np.kron(part[0], np.ones((k, k, 1), np.float32)) for k in (1, 2, 3)]

    def rounds(count: int) -> None:
        for i in range(count):
            inspector.inspect(frames[i % 3])

    rounds(30)
    before = _resident(), len(os.listdir("/proc/self/fd")), threading.active_count()
    rounds(300)
    after = _resident(), len(os.listdir("/proc/self/fd")), threading.active_count()
    # A leak of one score map per inspection would be 300 x 9 kB; the allocator may keep 1 MB.
    assert after[0] - before[0] < 2 << 20
    assert after[1:] == before[1:]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_opening_and_closing_leaks_nothing(tiny_bundle: Bundle, part: Part) -> None:
    def once() -> None:
        with Inspector.open(tiny_bundle, threads=1, max_steps=3) as inspector:
            inspector.inspect(part[0])

    for _ in range(5):
        once()
    before = _resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        once()
    assert _resident() - before[0] < 4 << 20  # one session takes more than 1 MB
    assert len(os.listdir("/proc/self/fd")) == before[1]


def test_inspection_leaves_the_callers_arithmetic_alone(tiny_bundle: Bundle, part: Part) -> None:
    """Engines may flush subnormal numbers to zero, but not in the caller's thread."""
    Inspector.open(tiny_bundle, threads=1).inspect(part[0])
    assert np.float64(5e-324) * np.float64(1.0) != 0
    assert np.float32(1e-40) + np.float32(0) != 0


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_every_backend_gives_the_same_mask(tiny_bundle: Bundle, part: Part, backend: str) -> None:
    pytest.importorskip(backend)
    inspection = Inspector.open(tiny_bundle, backend=backend, threads=1).inspect(part[0])
    np.testing.assert_array_equal(inspection.mask, part[2])
    assert inspection.status is Status.CONVERGED
    np.testing.assert_allclose(inspection.restored, part[1], atol=0.01)


def test_inspect_takes_white_from_the_bundle(make_bundle: MakeBundle, part: Part) -> None:
    twelve_bits = np.rint(part[0] * 4095).astype(np.uint16)
    inspector = Inspector.open(make_bundle(preprocess={"white": 4095}), threads=1)
    found, eight = inspector.inspect(twelve_bits), inspector.inspect(as_uint8(part[0]))
    np.testing.assert_array_equal(found.mask, part[2])
    np.testing.assert_array_equal(eight.mask, part[2])
    assert 1000 < found.restored.max() <= 4095
    np.testing.assert_allclose(found.score, eight.score, atol=5e-3)  # a step of 8 bits is 4e-3


def test_inspect_warns_once_of_a_size_that_calibration_has_not_seen(
    tiny_bundle: Bundle, part: Part
) -> None:
    calibration = tiny_bundle.manifest.calibration
    assert calibration is not None
    seen = calibration.model_copy(update={"frame_sizes": ((16, 16), (16, 16))})
    manifest = tiny_bundle.manifest.model_copy(update={"calibration": seen})
    with Inspector.open(Bundle(tiny_bundle.path, manifest), threads=1) as inspector:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inspector.inspect(part[0])
        large = part[0].repeat(2, axis=0).repeat(2, axis=1)
        with pytest.warns(RuntimeWarning, match="32 x 32 px, but calibration saw 16 x 16 px"):
            inspector.inspect(large)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inspector.inspect(large)
