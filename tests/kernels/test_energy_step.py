"""One step of energy projection: by hand, against Adam of torch, its argmin, and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

SHAPES = [
    (1, 1, 1, 1),
    (5, 3, 1, 19),
    (3, 1, 9, 11),
    (2, 5, 23, 43),
    (1, 3, 3, 2731),  # planes straddle the block of the compiled kernels
    (2, 3, 130, 131),
]
# Half a dozen float32 roundings of numbers near 1, and of steps that reach 10 with Adam.
ELEMENT = {"rtol": 4e-6, "atol": 4e-6}
SUM = {"rtol": 2e-5, "atol": 1e-9}  # changes are differences of rounded numbers
SUMS = ("l1", "squared_change", "largest_change")


def inputs(shape: tuple[int, ...], *, mask: str | None = None, **options: bool) -> dict[str, Any]:
    """Arguments; a third of the pixels stands where it started."""
    rng = np.random.default_rng(3)
    normal = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    start = rng.random(shape, dtype=np.float32)
    x = (start + 0.1 * normal[0]).astype(np.float32)
    x[..., ::3] = start[..., ::3]
    masks = {"shared": (shape[0], 1, *shape[2:]), "element": shape}
    given: dict[str, Any] = {
        "x": x,
        "start": start,
        "pulled": normal[1],
        "lam": np.linspace(0.05, 1.5, shape[0], dtype=np.float32),
        "rate": np.linspace(0.1, 0.5, shape[0], dtype=np.float32),
        "direct": normal[2] if options.get("direct") else None,
        "mask": rng.random(masks[mask], dtype=np.float32) if mask else None,
        "restored": None,
        "first": None,
        "second": None,
    }
    if options.get("restored"):
        given["restored"] = (x + normal[3]).astype(np.float32)
    if options.get("adam"):
        given["first"] = 0.1 * normal[3]
        given["second"] = (0.2 + normal[2] ** 2).astype(np.float32)
    return given | {name: np.full(shape[0], 7.0) for name in SUMS}


def copied(given: dict[str, Any]) -> dict[str, Any]:
    return {name: v.copy() if isinstance(v, np.ndarray) else v for name, v in given.items()}


KINDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"direct": True}, {"direct_factor": -1.0, "lower": 0.0, "upper": 1.0}),
    ({"mask": "shared", "direct": True}, {"proximal": True}),
    ({"mask": "element", "restored": True}, {}),
    ({"restored": True}, {"proximal": True, "lower": 0.2}),
    ({"adam": True}, {"step": 1}),
    ({"adam": True, "restored": True, "direct": True}, {"step": 5}),
    ({"adam": True, "restored": True, "mask": "shared"}, {"step": 5, "weigh_step": True}),
    ({"adam": True, "mask": "element"}, {"step": 2, "proximal": True, "upper": 0.9}),
    ({"adam": True, "restored": True}, {"step": 3, "proximal": True, "weigh_step": True}),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize(("options", "settings"), KINDS)
def test_energy_step_matches_reference(
    kernels: Any, reference: Any, shape: Any, options: Any, settings: Any
) -> None:
    found = inputs(shape, **options)
    expected = copied(found)
    kernels.energy_step(**found, **settings)
    reference.energy_step(**expected, **settings)
    for name in ("x", "first", "second"):
        if found[name] is not None:
            np.testing.assert_allclose(found[name], expected[name], **ELEMENT)
    for name in SUMS:
        np.testing.assert_allclose(found[name], expected[name], **SUM)


def test_energy_step_is_that_of_the_paper(kernels: Any) -> None:
    """Eqs. 5, 7 and 8 on one pixel: x = 0.5 from 0.2, slope 2 + 1, lambda 0.5, rate 0.1."""
    one = np.ones((1, 1, 1, 1), np.float32)
    weights = {"mask": 0.5 * one, "restored": 0.3 * one}
    for given, weight in (((), 1), (("mask",), 0.5), (("restored",), 0.04), (weights, 0.02)):
        x, sums = 0.5 * one, {name: np.empty(1) for name in SUMS}
        kernels.energy_step(
            x, 0.2 * one, 2 * one, np.full(1, 0.5, "f"), np.full(1, 0.1, "f"),
            direct=one, first=None, second=None, **sums,
            **{name: array if name in given else None for name, array in weights.items()},
        )  # fmt: skip
        np.testing.assert_allclose(x, 0.5 - 0.1 * weight * 3.5, rtol=1e-6)
        np.testing.assert_allclose(sums["l1"], 0.5 * 0.3, rtol=1e-6)
        np.testing.assert_allclose(sums["squared_change"], (0.35 * weight) ** 2, rtol=1e-5)
        np.testing.assert_allclose(sums["largest_change"], 0.35 * weight, rtol=1e-5)


def test_energy_step_descends_as_torch_adam_does(kernels: Any) -> None:
    torch = pytest.importorskip("torch")
    shape = (2, 3, 5, 7)
    rng = np.random.default_rng(0)
    start, target = rng.random((2, *shape), dtype=np.float32)
    x, lam = start.copy(), np.full(2, 0.3, np.float32)
    leaf = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimiser = torch.optim.Adam([leaf], lr=0.05)
    moments = {"first": np.zeros(shape, np.float32), "second": np.zeros(shape, np.float32)}
    sums = {name: np.empty(2) for name in SUMS}
    for step in range(1, 8):
        optimiser.zero_grad()
        away = (leaf - torch.tensor(start)).abs()
        loss = (leaf - torch.tensor(target)).square().sum() + 0.3 * away.sum()
        loss.backward()
        optimiser.step()
        kernels.energy_step(
            x, start, 2 * (x - target), lam, np.full(2, 0.05, np.float32), step=step,
            direct=None, mask=None, restored=None, **moments, **sums,
        )  # fmt: skip
        np.testing.assert_allclose(sums["l1"].sum(), 0.3 * away.sum().item(), rtol=1e-4, atol=1e-5)
    # Signs agree as long as no pixel comes back to where it started, which none does here.
    np.testing.assert_allclose(x, leaf.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("adam", [False, True])
def test_proximal_step_rests_where_the_l1_term_wins(kernels: Any, adam: bool) -> None:
    """min (x - t)^2 + lam |x - s|: x = s where 2 |t - s| <= lam, else t -+ lam / 2."""
    shape, lam = (1, 1, 20, 30), 0.5
    rng = np.random.default_rng(0)
    start, target = rng.random((2, *shape), dtype=np.float32)
    x, found = start.copy(), []
    first, second = (np.zeros(shape, np.float32) if adam else None for _ in range(2))
    sums = {name: np.empty(1) for name in SUMS}
    rate = np.full(1, 0.01 if adam else 0.2, np.float32)
    for step in range(1, 1200):
        kernels.energy_step(
            x, start, 2 * (x - target), np.full(1, lam, "f"), rate,
            direct=None, mask=None, restored=None, first=first, second=second, step=step,
            proximal=True, **sums,
        )  # fmt: skip
        found.append(float(sums["largest_change"][0]))
    away = (target - start).astype(np.float64)
    expected = start + np.sign(away) * np.maximum(abs(away) - lam / 2, 0)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-3 if adam else 1e-6)
    resting = 2 * abs(away) < lam * 0.99
    np.testing.assert_array_equal(x[resting], start[resting])
    assert found[-1] < 1e-4


def test_a_pixel_at_its_start_is_not_drawn(kernels: Any) -> None:
    given = inputs((2, 3, 9, 11))
    given["x"] = given["start"].copy()
    given["pulled"] = np.zeros_like(given["x"])
    kernels.energy_step(**given)
    np.testing.assert_array_equal(given["x"], given["start"])
    for name in SUMS:
        np.testing.assert_array_equal(given[name], 0)


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_masked_pixels_and_items_of_rate_zero_stay(
    kernels: Any, adam: bool, proximal: bool
) -> None:
    given = inputs((2, 3, 9, 11), mask="shared", adam=adam)
    if adam:
        given["first"][...] = 0
    given["rate"][1] = 0
    given["mask"][..., ::2] = 0
    before = given["x"].copy()
    kernels.energy_step(**given, proximal=proximal)
    np.testing.assert_array_equal(given["x"][1], before[1])
    np.testing.assert_array_equal(given["x"][0, ..., ::2], before[0, ..., ::2])
    assert (given["x"][0, ..., 1::2] != before[0, ..., 1::2]).mean() > 0.5
    assert given["squared_change"].tolist()[1] == given["largest_change"].tolist()[1] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "start", "pulled", "direct", "restored", "mask"])
@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_energy_step_keeps_a_bad_number_to_its_element(
    kernels: Any, bad: float, name: str, proximal: bool, adam: bool
) -> None:
    shape = (2, 3, 9, 11)
    given = inputs(shape, mask="element", direct=True, restored=True, adam=adam)
    given[name][1, 2, 3, 4] = bad
    kernels.energy_step(**given, proximal=proximal, step=3)
    wrong = np.argwhere(~np.isfinite(given["x"])).tolist()
    # A start infinitely far away draws as any other: by its side alone.
    drawn = name == "start" and np.isinf(bad)
    assert wrong == ([] if drawn else [[1, 2, 3, 4]])
    assert np.isfinite(given["squared_change"]).tolist() == [True, drawn]
    assert np.isfinite(given["largest_change"]).tolist() == [True, drawn]
    assert np.isfinite(given["l1"]).tolist() == [True, name not in ("x", "start")]
