"""F2PAD on planted defects: outlines, the guard, deadlines, and the paper's steps against torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle.searches import F2padSettings
from unblemish.errors import BundleError, ConfigError
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.detectors.protocol import FeaturePrograms
from unblemish.runtime.inpainting import ClassicalInpainter
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.f2pad import F2pad
from unblemish.runtime.methods.f2pad_plan import balanced_weights, log_cost, plan_for
from unblemish.runtime.methods.guard import Rules, is_worse, strong_core

Make = Callable[..., Any]
Bool = NDArray[np.bool_]

# One pixel of rim around a defect of 14 x 10 pixels is a Dice of 0.85.
OUTLINED = 0.85
# Weights of the sharing in float16 and all else in float32, against float64, through 12 steps of
# Adan whose values change by half at every step.
TRAJECTORY = 5e-3


def part(shape: tuple[int, int], channels: int = 1, seed: int = 11) -> Any:
    rng = np.random.default_rng(seed)
    base = 0.45 + 0.1 * np.linspace(0, 1, shape[1])[None, :, None]
    noise = 0.02 * rng.standard_normal((*shape, channels))
    return np.clip(base + noise, 0, 1).astype(np.float32)


def planted(
    shape: tuple[int, int] = (64, 48), channels: int = 1, where: Any = (20, 34, 14, 24)
) -> tuple[Any, Bool]:
    """A normal part with a bright patch, and the truth."""
    frame = part(shape, channels)
    truth = np.zeros(shape, np.bool_)
    top, bottom, left, right = where
    truth[top:bottom, left:right] = True
    frame[truth] = np.float32(0.9)
    return frame, truth


def dice(mask: Bool, truth: Bool) -> float:
    return float(2 * (mask & truth).sum() / max(int(mask.sum() + truth.sum()), 1))


def with_levels(tiny: Any, **levels: Any) -> Any:
    """As calibration would leave it."""
    record = tiny.detector.record.model_copy(update=levels)
    manifest = tiny.bundle.manifest.model_copy(update={"detector": record})
    bundle = replace(tiny.bundle, manifest=manifest)
    return replace(tiny, bundle=bundle, detector=replace(tiny.detector, record=record))


def refiner(tiny: Any, schedule: str = "fast", **options: Any) -> F2pad:
    options.setdefault("threshold", tiny.threshold)
    return F2pad(tiny.bundle, tiny.detector, NumpyKernels(), schedule=schedule, **options)


@pytest.mark.parametrize(("schedule", "channels"), [("fast", 1), ("fast", 3), ("descent", 1)])
def test_outlines_are_closer_than_the_detectors_own(
    make_tiny: Make, schedule: str, channels: int
) -> None:
    tiny = make_tiny(channels)
    frame, truth = planted(channels=channels)
    inputs = tiny.inputs(frame)
    found = refiner(tiny, schedule).refine(*inputs)
    plain = inputs[2][0] > tiny.threshold
    assert dice(found.mask, truth) > max(OUTLINED, dice(plain, truth) + 0.1)
    assert found.kept_plain == 0
    assert found.regions >= 1
    # Outside the mask the frame stays; inside it is what surrounds it.
    np.testing.assert_array_equal(found.restored[~found.mask], frame[~found.mask])
    assert np.abs(found.restored[found.mask & truth] - 0.5).max() < 0.2
    assert found.residual[truth].mean() > 10 * found.residual[~truth].mean()
    assert not found.residual[~found.free].any()


class OfSizes:
    """Programs that take images of few sizes alone, as engines that were built for each do."""

    def __init__(self, inner: Any, sizes: tuple[tuple[int, int], ...]) -> None:
        self.inner, self.image_sizes = inner, sizes
        self.seen: set[tuple[int, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, feeds: Any) -> Any:
        self.seen.add(feeds["image"].shape[2:])
        return self.inner.run(feeds)

    def forward(self, feeds: Any) -> Any:
        self.seen.add(feeds["image"].shape[2:])
        return self.inner.forward(feeds)


@pytest.mark.parametrize("schedule", ["fast", "descent"])
def test_crops_have_the_sizes_that_engines_were_built_for(make_tiny: Make, schedule: str) -> None:
    sizes = ((64, 48), (48, 48))
    tiny = make_tiny()
    frame, truth = planted(where=(0, 10, 0, 8))
    inputs = tiny.inputs(frame)
    plan = replace(plan_for(schedule, tiny.bundle.manifest.f2pad), margin=0)
    free = refiner(tiny, schedule, plan=plan).refine(*inputs)
    programs = tiny.detector.programs
    plain, pair = (OfSizes(one, sizes) for one in (programs.plain, programs.pair))
    detector = replace(tiny.detector, programs=FeaturePrograms(plain, pair))
    found = refiner(replace(tiny, detector=detector), schedule, plan=plan).refine(*inputs)
    assert plain.seen | pair.seen == set(sizes)
    assert min(dice(found.mask, free.mask), dice(found.mask, truth)) > OUTLINED


@pytest.mark.parametrize(
    ("shape", "changes", "where"),
    [
        ((200, 150), {}, (70, 100, 40, 80)),
        ((48, 40), {}, (12, 26, 10, 22)),
        ((130, 60), {"geometry": "letterbox"}, (40, 70, 20, 40)),
        ((100, 120), {"geometry": "tiles", "scale": 1.0}, (40, 60, 50, 70)),
        ((64, 48), {}, (0, 14, 0, 12)),
        ((64, 48), {}, (54, 64, 10, 40)),
    ],
)
def test_outlines_at_native_resolution_and_at_the_border(
    make_tiny: Make, shape: tuple[int, int], changes: dict[str, Any], where: Any
) -> None:
    tiny = make_tiny(1, **changes)
    frame, truth = planted(shape, 1, where)
    inputs = tiny.inputs(frame)
    # Frames of another size than the normals are stranger everywhere.
    threshold = 0.3 * float(inputs[2].max())
    found = refiner(tiny, threshold=threshold).refine(*inputs)
    assert found.mask.shape == shape
    assert dice(found.mask, truth) > OUTLINED


def test_normal_parts_are_left_alone(make_tiny: Make) -> None:
    tiny = make_tiny(1)
    frame = part((64, 48))
    inputs = tiny.inputs(frame)
    found = refiner(tiny, threshold=2 * float(inputs[2].max())).refine(*inputs)
    assert found.status is Status.PLAIN
    assert found.regions == found.steps == found.kept_plain == 0
    assert not found.mask.any()
    assert not found.residual.any()
    np.testing.assert_array_equal(found.restored, frame)
    assert found.restored is not frame


@pytest.mark.parametrize("schedule", ["fast", "descent", "paper"])
def test_a_part_that_is_all_defect_gives_a_result(make_tiny: Make, schedule: str) -> None:
    tiny = make_tiny(1, F2padSettings(max_steps=8))
    frame = np.random.default_rng(0).random((64, 48, 1)).astype(np.float32)
    inputs = tiny.inputs(frame)
    found = refiner(tiny, schedule, threshold=1e-3).refine(*inputs)
    assert found.free.all()
    assert np.isfinite(found.residual).all()
    assert np.isfinite(found.restored).all()


def test_large_regions_are_searched_at_reduced_size(make_tiny: Make, monkeypatch: Any) -> None:
    tiny = make_tiny(1)
    frame, truth = planted((200, 150), 1, (60, 120, 30, 100))
    inputs = tiny.inputs(frame)
    monkeypatch.setattr("unblemish.runtime.methods.f2pad._LARGEST", 2000)
    found = refiner(tiny, threshold=0.3 * float(inputs[2].max())).refine(*inputs)
    assert found.mask.shape == (200, 150)
    assert dice(found.mask, truth) > OUTLINED


class Clock:
    """Seconds that pass by a little with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@pytest.mark.parametrize("schedule", ["fast", "descent", "paper"])
def test_deadlines_are_a_status_and_leave_the_plain_outline(make_tiny: Make, schedule: str) -> None:
    tiny = make_tiny(1)
    frame, _ = planted()
    inputs = tiny.inputs(frame)
    found = refiner(tiny, schedule).refine(*inputs, 0.0, Clock())
    assert found.status is Status.DEADLINE
    if schedule == "fast":
        assert found.kept_plain == found.regions
        np.testing.assert_array_equal(found.mask, inputs[2][0] > tiny.threshold)
        np.testing.assert_array_equal(found.kept, found.free)


@pytest.mark.parametrize("schedule", ["descent", "paper"])
def test_a_search_stops_in_time(make_tiny: Make, schedule: str) -> None:
    tiny = make_tiny(1)
    frame, _ = planted()
    found = refiner(tiny, schedule).refine(*tiny.inputs(frame), 0.6, Clock())
    assert found.status is Status.DEADLINE
    assert 0 < found.steps < 60


@pytest.mark.parametrize("schedule", ["fast", "descent"])
def test_a_network_that_gives_nan_keeps_the_plain_outline(
    make_tiny: Make, schedule: str, monkeypatch: Any
) -> None:
    tiny = make_tiny(1)
    frame, _ = planted()
    inputs = tiny.inputs(frame)
    model = tiny.detector.model
    broken = replace(model, mean=model.mean * np.float32(np.nan))
    tiny = replace(tiny, detector=replace(tiny.detector, model=broken))
    found = refiner(tiny, schedule).refine(*inputs)
    assert found.kept_plain == found.regions
    assert np.isfinite(found.residual).all()
    assert np.isfinite(found.restored).all()


def test_a_kept_outline_scores_its_map(make_tiny: Make) -> None:
    """Where nothing pays, the score crosses the tolerance where the map crosses its threshold."""
    tiny = make_tiny(1, F2padSettings(beta=1e9))
    frame, _ = planted()
    inputs = tiny.inputs(frame)
    found = refiner(tiny).refine(*inputs)
    assert found.kept_plain == found.regions
    plain = inputs[2][0] > tiny.threshold
    np.testing.assert_array_equal(found.mask, plain)
    tolerance = F2padSettings().tolerance * 0.226
    np.testing.assert_array_equal(found.residual >= tolerance, plain)


def test_what_cannot_be_explained_and_is_usual_in_normal_frames_is_dropped(make_tiny: Make) -> None:
    tiny = make_tiny(1, F2padSettings(beta=1e9))
    frame, _ = planted()
    inputs = tiny.inputs(frame)
    assert refiner(tiny).refine(*inputs).mask.any()
    tiny = with_levels(tiny, normal_peak=2 * float(inputs[2].max()))
    found = refiner(tiny).refine(*inputs)
    assert not found.mask.any()
    assert found.kept.any()
    assert found.kept_plain == 0
    assert (found.residual < 0.2 * 0.226).all()
    np.testing.assert_array_equal(found.restored, inputs[0])


def test_rare_colours_are_searched_where_the_detector_sees_nothing(make_tiny: Make) -> None:
    """The detector's threshold is out of reach; the patch lies 9 deviations from the prior."""
    tiny = make_tiny(1)
    frame, truth = planted()
    inputs = tiny.inputs(frame)
    blind = 10 * float(inputs[2].max())
    assert not refiner(tiny, threshold=blind).refine(*inputs).free.any()
    (mixture,) = tiny.detector.record.mixtures
    tiny = with_levels(tiny, mixtures=(mixture.model_copy(update={"level": 20.0}),))
    found = refiner(tiny, threshold=blind).refine(*inputs)
    assert found.free[truth].all()
    assert found.strange[truth].min() > 1
    normal = tiny.inputs(part((64, 48)))
    assert not refiner(tiny, threshold=blind).refine(*normal).free.any()


def test_results_do_not_depend_on_what_came_before(make_tiny: Make) -> None:
    tiny = make_tiny(1)
    frame, _ = planted()
    other, _ = planted(where=(2, 20, 30, 44))
    method = refiner(tiny, "descent")
    first = method.refine(*tiny.inputs(frame))
    method.refine(*tiny.inputs(other))
    again = method.refine(*tiny.inputs(frame))
    np.testing.assert_array_equal(first.residual, again.residual)
    np.testing.assert_array_equal(first.restored, again.restored)


def test_what_is_asked_for_must_exist(make_tiny: Make) -> None:
    tiny = make_tiny(1)
    with pytest.raises(BundleError, match="not calibrated"):
        refiner(tiny, threshold=None)
    with pytest.raises(ConfigError, match="schedule"):
        refiner(tiny, "soon")


def test_the_papers_schedule_takes_the_papers_steps(make_tiny: Make) -> None:
    """Algorithm 1, lines 3 to 8, on a model image, against torch in float64."""
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    settings = F2padSettings(max_steps=12, decrease=1e-9, beta0=30.0, step_size=1 / 3)
    tiny = make_tiny(3, settings)
    frame, _ = planted(channels=3)
    inputs = tiny.inputs(frame)
    found = refiner(tiny, "paper").refine(*inputs)
    assert found.steps == 12

    unit, s = 0.226, settings
    mask0 = inputs[2][0] > tiny.threshold
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))
    free = cv2.dilate(mask0.astype(np.uint8), disc) > 0
    np.testing.assert_array_equal(found.free, free)

    def tensor(a: Any) -> Any:
        return torch.tensor(np.asarray(a, np.float64))

    x = tensor(frame).permute(2, 0, 1)[None] / unit
    n = tensor(ClassicalInpainter()(frame, free)).permute(2, 0, 1)[None] / unit
    w1, w2 = (tensor(w) for w in tiny.weights)
    model = tiny.detector.model
    r, c = np.tril_indices(6)
    lower = torch.zeros((len(model.mean), 6, 6), dtype=torch.float64)
    lower[:, r, c] = tensor(model.whitening)
    mean, beta = tensor(model.mean), s.beta0 / int(mask0.sum())

    def objective(n: Any) -> Any:
        f = torch.tanh(F.conv2d(n * unit, w1, stride=2, padding=1))
        f = F.conv2d(f, w2, stride=2, padding=1)[0].permute(1, 2, 0).reshape(-1, 6)
        value = torch.einsum("lij,lj->li", lower, f - mean).square().sum()
        value = value + s.alpha1 * 400 * (n * unit - 0.5).square().sum()
        a2 = (x - n).square().sum(1)
        a = torch.where(a2 > 0, a2, 1.0).sqrt() * (a2 > 0)
        value = value + beta * torch.log((a2 + s.epsilon).sqrt() + a).sum()
        for d in (n[:, :, 1:] - n[:, :, :-1], n[:, :, :, 1:] - n[:, :, :, :-1]):
            value = value + s.alpha2 * d.square().sum(1).sqrt().sum()
        return value

    k = 2 * s.radius + 1
    around = F.unfold(x, k, padding=s.radius).view(3, k * k, 64, 48)
    inside = F.unfold(torch.ones_like(x[:, :1]), k, padding=s.radius).view(k * k, 64, 48)
    offset = torch.arange(-s.radius, s.radius + 1.0, dtype=torch.float64).square()
    space = (offset[:, None] + offset[None]).reshape(-1, 1, 1)
    colour = (around - x[0][:, None]).square().sum(0)
    w = inside * torch.exp(-space / s.sigma_space - colour / s.sigma_colour)
    w = w / w.sum(0)
    m, v, q, last = (torch.zeros_like(n) for _ in range(4))
    trace, best, best_n = [], np.inf, n
    for t in range(1, 13):
        leaf = n.clone().requires_grad_()
        value = objective(leaf)
        (g,) = torch.autograd.grad(value, leaf)
        trace.append(value.item())
        if value.item() < best:
            best, best_n = value.item(), n
        g = (F.unfold(g, k, padding=s.radius).view(3, k * k, 64, 48) * w).sum(1)[None]
        g = g.clamp(-s.clip, s.clip)
        change = g - last if t > 1 else torch.zeros_like(g)
        last = g
        m = 0.98 * m + 0.02 * g
        v = 0.92 * v + 0.08 * change
        q = 0.99 * q + 0.01 * (g + 0.92 * change).square()
        u = m / (1 - 0.98**t) + 0.92 * v / (1 - 0.92**t)
        u = u / ((q / (1 - 0.99**t)).sqrt() + 1e-8)
        gamma = 0.03 * s.step_size / (x - n).abs().clamp_min(0.05)
        n = torch.where(tensor(free) > 0, (n - gamma * u).clamp(0, 1 / unit), n)
    np.testing.assert_allclose(found.trace, trace, rtol=TRAJECTORY)
    expected = ((x - best_n) * unit).square().mean(1).sqrt()[0].numpy()
    kept = found.kept
    apart = np.abs(found.residual - expected)[~kept]
    # One step moves a pixel by up to 0.045; those whose gradient is near 0 may take another way.
    assert apart.max() < 0.02
    assert apart.mean() < 5e-4


def square(top: int, bottom: int) -> Bool:
    mask = np.zeros((20, 20), np.bool_)
    mask[top:bottom, top:bottom] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "before", "after", "worse"),
    [
        (square(5, 12), 100.0, 20.0, False),
        (square(0, 0), 100.0, 20.0, True),  # collapsed to nothing
        (square(14, 15), 100.0, 20.0, True),  # collapsed outside the core
        (square(5, 12), 100.0, 95.0, True),  # the restored image is as strange
        (square(5, 12), 100.0, float("nan"), True),
        (square(0, 20), 100.0, 20.0, True),  # strayed far beyond the plain mask
    ],
)
def test_the_guard_keeps_what_is_better(
    mask: Bool, before: float, after: float, worse: bool
) -> None:
    plain = square(4, 14)
    values = np.where(plain, 1.0, 0.0).astype(np.float32)
    values[6:12, 6:12] = 3.0
    core = strong_core(values, plain)
    assert int(core.sum()) == 36
    rules = Rules(least=0.05, lowered=0.1, inside=0.3)
    assert is_worse(mask, plain, core, before, after, rules) is worse


def test_weights_follow_what_there_is_to_gain() -> None:
    settings = F2padSettings(balance=2.0, prior_strength=1.0)
    plan = plan_for("descent", settings)
    flagged, area = np.array([50.0, 500.0]), np.array([1.0, 0.25])
    gain = np.array([40.0, 4000.0])
    weights = balanced_weights(settings, plan, flagged, area, 2 * gain, gain, 1)
    # Flagging the whole mask by one unit costs twice the gain; native sums count by area.
    cost = weights.sparsity[-1] / area * log_cost(settings.epsilon) * flagged
    np.testing.assert_allclose(cost, 2 * gain, rtol=1e-5)
    np.testing.assert_allclose(weights.variation, 1e-4 * np.sqrt(area), rtol=1e-5)
    assert (np.diff(weights.sparsity, axis=0) > 0).all()
