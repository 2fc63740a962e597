"""Exported generators in torch with their tensors elsewhere: no number is read back from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from unblemish.export.build import plan
from unblemish.export.models.burgess import BurgessVae
from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
from unblemish.export.models.pca import Pca, PcaSettings
from unblemish.export.options import ExportOptions
from unblemish.runtime.backends.torch_graph import TorchGraph

META = torch.device("meta")  # has shapes and no values: to read one is an error


def _pca(path: Path) -> onnx.ModelProto:
    settings = PcaSettings(12, 3, 5)
    save_checkpoint(path, Checkpoint("pca", settings_of(settings), Pca(settings).state_dict()))
    return plan(path, ExportOptions()).graphs["generator"]


def _burgess(path: Path) -> onnx.ModelProto:
    torch.manual_seed(0)
    torch.save(BurgessVae(3, 4, width=3, hidden=5).state_dict(), path)
    return plan(path, ExportOptions()).graphs["generator"]


def _run(model: onnx.ModelProto, device: torch.device) -> dict[str, torch.Tensor]:
    graph = TorchGraph(model, dtype=torch.float32).place(device)
    (spec,) = graph.inputs
    shape = (2, *(int(d) for d in spec.shape[1:]))
    z = torch.zeros(shape, device=device, requires_grad=True)
    found: dict[str, torch.Tensor] = graph(**{spec.name: z})
    total = sum(value.sum() for value in found.values())
    gradients = torch.autograd.grad(total, [z, *graph.weights.values()], allow_unused=True)  # type: ignore[arg-type]
    assert {g.device for g in gradients if g is not None} == {device}
    return found


@pytest.mark.parametrize("kind", ["pca", "burgess", "vae", "pggan"])
def test_generators_read_no_number_from_the_device(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Any
    if kind == "vae":
        model = request.getfixturevalue("vae_plan").graphs["generator"]
    elif kind == "pggan":
        model = request.getfixturevalue("pggan_plan")[1].graphs["generator"]
    else:
        model = {"pca": _pca, "burgess": _burgess}[kind](tmp_path / "part.pt")
    _assert_runs_there(model)


_SIZES = """<ir_version: 10, opset_import: ["": 21]>
g (float[batch,4] z) => (float[batch,2,c,d] image)
<float[1] half = {0.5}, int64[2] eight = {1, 8}, int64[1] first = {0},
 int64[1] two = {2}, int64[1] four = {4}, int64[3] rest = {2, 4, 4}, int64[1] last = {3},
 int64[8] pads = {0, 0, 1, 0, 0, 0, 0, 1}, float[4] scales = {1.0, 1.0, 2.0, 2.0}> {
  wide = Tile(z, eight)
  size = Shape(z)  batch = Gather(size, first)
  shape = Concat<axis=0>(batch, rest)  small = Reshape(wide, shape)
  grown = Resize<mode="linear">(small, , scales)
  padded = Pad(grown, pads)  cut = Slice(padded, first, two, last)
  sides = Shape(padded)  half_open = Slice(sides, two, four)  doubled = Mul(half_open, two)
  lengths = Concat<axis=0>(batch, two, doubled)
  large = Resize<mode="nearest">(cut, , , lengths)
  image = Mul(large, half)
}"""


def test_shapes_that_are_computed_are_computed_on_the_host() -> None:
    _assert_runs_there(onnx.parser.parse_model(_SIZES))


def _assert_runs_there(model: onnx.ModelProto) -> None:
    there, here = _run(model, META), _run(model, torch.device("cpu"))
    assert {n: t.shape for n, t in there.items()} == {n: t.shape for n, t in here.items()}
    assert {t.device for t in there.values()} == {META}
