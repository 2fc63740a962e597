"""The conditional flow against float64 NumPy, its own Jacobian and its inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unblemish.export.models.flow import CLAMP, POSITION, ConditionalFlow, harmonics

MakeFlow = Callable[..., ConditionalFlow]
# float64 on both sides: rounding of a few hundred terms.
EXACT = 1e-10
# float32 through three couplings and a triangular solve of condition below 1e2.
SINGLE = 1e-3


def vectors(flow: ConditionalFlow, count: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    row, column = (rng.integers(0, side, count) for side in flow.grid)
    return rng.standard_normal((count, flow.channels)) * 2, row, column


def by_numpy(flow: ConditionalFlow, f: np.ndarray, row: np.ndarray, column: np.ndarray) -> Any:
    """z and log |det| of one vector after the other, from the weights alone."""
    w = {name: t.double().numpy() for name, t in flow.state_dict().items()}
    moved, dets = [], []
    for vector, r, c in zip(f, row, column, strict=True):
        place = np.concatenate([encoding(int(r)), encoding(int(c))])
        x = w["whitening"] @ (vector - w["mean"])
        det = float(np.log(np.diag(w["whitening"])).sum())
        for k in range(len(flow.blocks)):
            p = f"blocks.{k}."
            x = x[flow.state_dict()[p + "order"].numpy()]
            u, v = x[: len(x) // 2], x[len(x) // 2 :]
            c_e = np.concatenate([w[p + "row.weight"], w[p + "column.weight"]], axis=1) @ place
            h = np.maximum(w[p + "inner.weight"] @ u + w[p + "inner.bias"] + c_e, 0)
            both = w[p + "outer.weight"] @ h + w[p + "outer.bias"]
            s, t = CLAMP * np.tanh(both[: len(v)] / CLAMP), both[len(v) :]
            x = np.concatenate([u, v * np.exp(s) + t])
            det += s.sum()
        moved.append(x)
        dets.append(det)
    return np.array(moved), np.array(dets)


def encoding(number: int) -> np.ndarray:
    """Sines and cosines of a number, one frequency after the other, as float32 holds them."""
    out = []
    for i in range(POSITION // 4):
        angle = number / 10_000 ** (2 * i / (POSITION // 2))
        out += [math.sin(angle), math.cos(angle)]
    return np.array(out, np.float32).astype(np.float64)


def test_harmonics_are_sines_and_cosines_of_falling_frequency() -> None:
    found = harmonics(40, POSITION // 2)
    for number in (0, 1, 39):
        np.testing.assert_allclose(found[number], encoding(number), atol=1e-7)


def test_harmonics_tell_all_places_of_a_map_apart() -> None:
    found = harmonics(100, POSITION // 2).astype(np.float64)
    apart = np.linalg.norm(found[:, None] - found[None], axis=2) + np.eye(100)
    assert apart.min() > 0.5


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_encode_is_the_numpy_formula(make_flow: MakeFlow, channels: int) -> None:
    flow = make_flow(channels, (5, 7)).double()
    f, row, column = vectors(flow, 9, 1)
    z, det = flow.encode(*(torch.from_numpy(a) for a in (f, row, column)))
    want, want_det = by_numpy(flow, f, row, column)
    np.testing.assert_allclose(z.numpy(), want, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(det.numpy(), want_det, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_log_determinant_is_that_of_the_jacobian(make_flow: MakeFlow, channels: int) -> None:
    flow = make_flow(channels, (5, 7)).double()
    f, row, column = vectors(flow, 4, 2)
    for k in range(len(f)):
        place = [torch.from_numpy(a[k : k + 1]) for a in (row, column)]

        def mapped(x: torch.Tensor, place: list[torch.Tensor] = place) -> torch.Tensor:
            return flow.encode(x[None], *place)[0][0]

        of: Any = torch.autograd.functional.jacobian
        jacobian = of(mapped, torch.from_numpy(f[k]))
        _, want = np.linalg.slogdet(jacobian.numpy())
        _, found = flow.encode(torch.from_numpy(f[k : k + 1]), *place)
        assert float(found) == pytest.approx(want, rel=1e-9)


def test_density_integrates_to_one(make_flow: MakeFlow) -> None:
    flow = make_flow(2, (3, 3), blocks=2).double()
    blocks: Any = flow.blocks
    for block in blocks:  # so that no part of the plane is squeezed below the grid's cells
        block.outer.weight *= 0.2
    line = np.linspace(-30, 30, 1501)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    places = torch.full((len(grid),), 1), torch.full((len(grid),), 2)
    per_channel = flow(torch.from_numpy(grid), *places)
    total = float((2 * per_channel).exp().sum()) * (line[1] - line[0]) ** 2
    # A sum over cells of 0.04 a side, of a density with kinks, cut at 30.
    assert total == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("channels", [2, 5, 64])
def test_decode_undoes_encode(make_flow: MakeFlow, channels: int) -> None:
    flow = make_flow(channels, (5, 7))
    f, row, column = vectors(flow, 30, 3)
    f32 = torch.from_numpy(f.astype(np.float32))
    places = torch.from_numpy(row), torch.from_numpy(column)
    exact = flow.double()
    z, _ = exact.encode(f32.double(), *places)
    np.testing.assert_allclose(exact.decode(z, *places).numpy(), f32.numpy(), atol=1e-8)
    single = exact.float()
    back = single.decode(single.encode(f32, *places)[0], *places).numpy()
    np.testing.assert_allclose(back, f32.numpy(), atol=SINGLE * np.abs(f).max())


def test_a_new_flow_is_the_gaussian_of_its_first_layer() -> None:
    rng = np.random.default_rng(4)
    root = rng.standard_normal((6, 6))
    covariance, mean = root @ root.T + np.eye(6), rng.standard_normal(6)
    flow = ConditionalFlow(6, (4, 4)).double()
    flow.whiten(mean, np.linalg.inv(np.linalg.cholesky(covariance)))
    f, row, column = vectors(flow, 8, 5)
    with torch.no_grad():
        found = flow(*(torch.from_numpy(a) for a in (f, row, column))).numpy()
    d = f - mean
    energy = np.einsum("ni,ij,nj->n", d, np.linalg.inv(covariance), d)
    _, logdet = np.linalg.slogdet(covariance)
    want = (-0.5 * (energy + logdet) - 3 * math.log(2 * math.pi)) / 6
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_the_place_matters(make_flow: MakeFlow) -> None:
    flow = make_flow(6, (5, 7))
    f = torch.ones(1, 6)
    here, there = (flow(f, torch.tensor([r]), torch.tensor([c])) for r, c in ((0, 3), (3, 0)))
    assert abs(float(here - there)) > 1e-3


def test_seeds_fix_shuffles_and_weights() -> None:
    first, same, other = (ConditionalFlow(6, (4, 4), seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_making_a_flow_leaves_the_random_numbers_of_torch_alone() -> None:
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    ConditionalFlow(6, (4, 4), seed=1)
    assert torch.equal(torch.rand(3), want)
