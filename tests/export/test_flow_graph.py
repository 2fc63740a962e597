"""The flows as ONNX: values and gradients against torch in float64 and central differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ModelError
from unblemish.export.flow_graph import _strayed, check_flow, flow_graphs, flow_model, with_cells
from unblemish.export.models.flow import ConditionalFlow
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.protocol import Pair

MakeFlow = Callable[..., ConditionalFlow]
GRIDS = ((6, 5), (3, 2))
# float32 sums of some tens of products, through three couplings.
VALUE = 1e-4
GRADIENT = 1e-4  # relative, l2; no vector lies at a kink
STEP = 1e-6  # float64 central differences: truncation and rounding about equal


@pytest.fixture
def flows(make_flow: MakeFlow) -> list[ConditionalFlow]:
    return [make_flow(8, GRIDS[0], seed=1), make_flow(5, GRIDS[1], seed=2)]


def feeds_of(flows: list[ConditionalFlow], counts: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    feeds: dict[str, np.ndarray] = {}
    for k, (flow, count) in enumerate(zip(flows, counts, strict=True)):
        feeds[f"features_{k}"] = rng.standard_normal((count, flow.channels)).astype(np.float32)
        for axis, side in zip(("row", "column"), flow.grid, strict=True):
            feeds[f"position_{axis}_{k}"] = rng.integers(0, side, count)
    return feeds


def by_torch(flow: ConditionalFlow, k: int, feeds: dict[str, np.ndarray]) -> torch.Tensor:
    places = (torch.from_numpy(feeds[f"position_{axis}_{k}"]) for axis in ("row", "column"))
    value: torch.Tensor = flow.double()(torch.from_numpy(feeds[f"features_{k}"]).double(), *places)
    return value


def opened(flows: list[ConditionalFlow], folder: Path) -> tuple[dict[GraphRole, Path], Pair]:
    paths: dict[GraphRole, Path] = {}
    for role, model in flow_graphs(flow_model(flows)).items():
        paths[role] = folder / f"{role}.onnx"
        onnx.save(model, paths[role])
    pair = OrtBackend(1).pair(str(paths["flow_forward"]), str(paths["flow_backward"]))
    return paths, pair


@pytest.mark.parametrize("counts", [(17, 9), (1, 1), (3, 64)])
def test_graph_gives_the_log_densities_of_torch(
    flows: list[ConditionalFlow], counts: tuple[int, ...]
) -> None:
    feeds = feeds_of(flows, counts)
    model = flow_model(flows)
    onnx.checker.check_model(model, full_check=True)
    found: list[np.ndarray] = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[assignment]
    for k, flow in enumerate(flows):
        np.testing.assert_allclose(found[k], by_torch(flow, k, feeds), rtol=VALUE, atol=VALUE)


def test_pair_gives_values_and_gradients_of_torch(
    flows: list[ConditionalFlow], tmp_path: Path
) -> None:
    paths, pair = opened(flows, tmp_path)
    feeds = feeds_of(flows, (17, 9))
    plain = OrtBackend(1).program(str(paths["flow"])).run(feeds)
    plain = {name: array.copy() for name, array in plain.items()}
    found = {name: array.copy() for name, array in pair.forward(feeds).items()}
    rng = np.random.default_rng(4)
    cotangents = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in found.items()}
    gradients = pair.backward(cotangents)
    for k, flow in enumerate(flows):
        name = f"likelihood_{k}"
        x = torch.from_numpy(feeds[f"features_{k}"]).double().requires_grad_()
        places = (torch.from_numpy(feeds[f"position_{axis}_{k}"]) for axis in ("row", "column"))
        value = flow.double()(x, *places)
        (want,) = torch.autograd.grad(value, x, torch.from_numpy(cotangents[name]).double())
        for outputs in (plain, found):
            np.testing.assert_allclose(outputs[name], value.detach(), rtol=VALUE, atol=VALUE)
        off = np.linalg.norm(gradients[f"features_{k}"] - want.numpy())
        assert off <= GRADIENT * np.linalg.norm(want.numpy())


def test_gradient_is_that_of_central_differences(
    flows: list[ConditionalFlow], tmp_path: Path
) -> None:
    _, pair = opened(flows, tmp_path)
    feeds = feeds_of(flows, (6, 4))
    found = pair.forward(feeds)
    ones = {name: np.ones_like(array) for name, array in found.items()}
    gradients = {name: array.copy() for name, array in pair.backward(ones).items()}
    rng = np.random.default_rng(5)
    for k, flow in enumerate(flows):
        features = feeds[f"features_{k}"].astype(np.float64)
        direction = rng.standard_normal(features.shape)
        ends = [
            by_torch(flow, k, {**feeds, f"features_{k}": features + sign * STEP * direction})
            for sign in (1, -1)
        ]
        want = (ends[0] - ends[1]).numpy() / (2 * STEP)
        slopes = (gradients[f"features_{k}"] * direction).sum(axis=1)
        np.testing.assert_allclose(slopes, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_graphs_are_of_standard_operators_with_named_ends(flows: list[ConditionalFlow]) -> None:
    for model in flow_graphs(flow_model(flows)).values():
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    model = flow_model(flows)
    names = [value.name for value in model.graph.input]
    assert names == [f"{n}_{k}" for k in (0, 1) for n in ("features", "position_row",
                                                          "position_column")]  # fmt: skip
    assert [value.name for value in model.graph.output] == ["likelihood_0", "likelihood_1"]


def test_with_cells_states_the_sizes_and_leaves_the_model(flows: list[ConditionalFlow]) -> None:
    model = flow_model(flows)
    fixed = with_cells(model, (30, 6))
    first = [v.type.tensor_type.shape.dim[0] for v in (*fixed.graph.input, *fixed.graph.output)]
    assert [d.dim_value for d in first] == [30, 30, 30, 6, 6, 6, 30, 6]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "cells_0"


def test_check_flow_accepts_what_was_exported(flows: list[ConditionalFlow], tmp_path: Path) -> None:
    paths, _ = opened(flows, tmp_path)
    figures = check_flow(flows, paths, seed=0)
    assert figures.keys() == {"likelihood", "likelihood_gradient"}
    assert 0 < figures["likelihood"] < VALUE
    assert 0 < figures["likelihood_gradient"] < 1e-3


def test_check_flow_refuses_another_flow(
    flows: list[ConditionalFlow], make_flow: MakeFlow, tmp_path: Path
) -> None:
    paths, _ = opened(flows, tmp_path)
    with pytest.raises(ModelError, match="strays from the trained one"):
        check_flow([flows[0], make_flow(5, GRIDS[1], seed=9)], paths, seed=0)


def test_a_flow_without_couplings_is_exported_too(make_flow: MakeFlow, tmp_path: Path) -> None:
    flows = [make_flow(4, (2, 2), blocks=0)]
    paths, _ = opened(flows, tmp_path)
    assert check_flow(flows, paths, seed=0)["likelihood"] < VALUE


def test_check_flow_takes_a_vector_at_a_kink_but_no_wrong_gradient() -> None:
    rng = np.random.default_rng(0)
    slope = rng.standard_normal((257, 6))
    kinked = slope.copy()
    kinked[::20] *= 1.1
    assert _strayed(kinked, slope) == 0
    assert _strayed(slope * 1.001, slope) == pytest.approx(1e-3)
    assert _strayed(np.zeros_like(slope), np.zeros_like(slope)) == 0
