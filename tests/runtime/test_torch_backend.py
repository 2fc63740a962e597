"""The torch backend against closed forms: plain graphs, autograd pairs and file pairs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.backends.torch import TorchBackend

HEAD = '<ir_version: 10, opset_import: ["": 21]> '
# y = tanh(z w) and its way back: grad_z = (ct (1 - y^2)) w^T, with y kept.
PLAIN = (
    "g (float[n, 3] z) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> "
    "{ a = MatMul(z, w) y = Tanh(a) }"
)
BACKWARD = (
    "b (float[n, 2] y, float[n, 2] ct_y) => (float[n, 3] grad_z) "
    "<float[2, 3] t = {1, 3, 5, 2, 4, 6}, float one = {1.0}> "
    "{ s = Mul(y, y) d = Sub(one, s) e = Mul(ct_y, d) grad_z = MatMul(e, t) }"
)
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, str]:
    forward, backward = tmp_path / "forward.onnx", tmp_path / "backward.onnx"
    onnx.save(parser.parse_model(HEAD + PLAIN), forward)
    onnx.save(parser.parse_model(HEAD + BACKWARD), backward)
    return str(forward), str(backward)


def _closed_form(z: np.ndarray, ct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = np.tanh(z @ W)
    return y, (ct * (1 - y**2)) @ W.T


@pytest.fixture
def values(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    z = rng.normal(size=(5, 3), scale=0.1).astype(np.float32)
    return z, rng.normal(size=(5, 2)).astype(np.float32)


def test_program_runs_the_graph(
    paths: tuple[str, str], values: tuple[np.ndarray, np.ndarray]
) -> None:
    program = TorchBackend().program(paths[0])
    assert [(s.name, s.shape) for s in program.inputs] == [("z", ("n", 3))]
    np.testing.assert_allclose(
        program.run({"z": values[0]})["y"], _closed_form(*values)[0], rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["graph", "files"])
def test_pair_gives_outputs_and_gradients(
    kind: str, paths: tuple[str, str], values: tuple[np.ndarray, np.ndarray]
) -> None:
    backend, (z, ct) = TorchBackend(), values
    pair = backend.pair_from_graph(paths[0]) if kind == "graph" else backend.pair(*paths)
    y, gradient = _closed_form(z, ct)
    np.testing.assert_allclose(pair.forward({"z": z})["y"], y, rtol=1e-5)
    np.testing.assert_allclose(pair.backward({"y": ct})["z"], gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        pair.backward({"y": 2 * ct})["z"], 2 * gradient, rtol=1e-5, atol=1e-6
    )
    assert [s.name for s in pair.outputs] == ["y"]


def test_pair_keeps_its_own_copy_of_the_feeds(
    paths: tuple[str, str], values: tuple[np.ndarray, np.ndarray]
) -> None:
    z, ct = values
    pair, given = TorchBackend().pair_from_graph(paths[0]), z.copy()
    pair.forward({"z": given})
    given[:] = 7.0
    np.testing.assert_allclose(
        pair.backward({"y": ct})["z"], _closed_form(z, ct)[1], rtol=1e-5, atol=1e-6
    )


def test_parameters_of_the_pair_can_be_trained(
    paths: tuple[str, str], values: tuple[np.ndarray, np.ndarray]
) -> None:
    import torch

    pair, z = TorchBackend().pair_from_graph(paths[0]), torch.from_numpy(values[0])
    before = pair.graph.weights["w"].detach().clone()
    optimiser = torch.optim.SGD(pair.graph.parameters(), lr=0.1)
    pair.graph(z=z)["y"].square().sum().backward()
    optimiser.step()
    assert not torch.equal(before, pair.graph.weights["w"])


@pytest.mark.parametrize("kind", ["graph", "files"])
def test_backward_before_forward_is_refused(kind: str, paths: tuple[str, str]) -> None:
    backend = TorchBackend()
    pair = backend.pair_from_graph(paths[0]) if kind == "graph" else backend.pair(*paths)
    with pytest.raises(BackendError, match="before forward"):
        pair.backward({"y": np.zeros((1, 2), np.float32)})


def test_wrong_feeds_are_refused(paths: tuple[str, str]) -> None:
    pair = TorchBackend().pair_from_graph(paths[0])
    with pytest.raises(ShapeError, match="dtype float64"):
        pair.forward({"z": np.zeros((1, 3))})
    with pytest.raises(ShapeError, match=r"takes \['z'\]"):
        pair.forward({"q": np.zeros((1, 3), np.float32)})
    pair.forward({"z": np.zeros((1, 3), np.float32)})
    with pytest.raises(ShapeError, match="cotangent of 'y'"):
        pair.backward({"y": np.zeros((2, 2), np.float32)})


def test_unknown_device_is_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(BackendError, match="device 'toaster'"):
        TorchBackend(device="toaster").program(paths[0])


def test_importing_the_backend_leaves_torch_out() -> None:
    code = (
        "import sys, unblemish.runtime.backends.torch; "
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_torch_is_named(paths: tuple[str, str]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from unblemish.errors import MissingDependencyError\n"
        "from unblemish.runtime.backends.torch import TorchBackend\n"
        "try: TorchBackend().program('x')\n"
        "except MissingDependencyError as error: sys.exit(error.extra != 'train')\n"
        "sys.exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_depends_on_no_input_is_computed_once(
    tmp_path: Path, values: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    # y = (z u^T) + s, where u^T and s = 2 * 3 come of constants alone, s by way of a Constant node.
    text = (
        "g (float[n, 3] z) => (float[n, 2] y) <float[2, 3] u = {1, 2, 3, 4, 5, 6}, float t = {2}> "
        "{ w = Transpose(u) c = Constant<value_float = 3.0>() s = Mul(t, c) "
        "a = MatMul(z, w) y = Add(a, s) }"
    )
    path = tmp_path / "g.onnx"
    onnx.save(parser.parse_model(HEAD + text), path)
    program = TorchBackend().program(str(path))

    from unblemish.runtime.backends.torch_ops import OPERATORS

    monkeypatch.delitem(OPERATORS, "Transpose")
    monkeypatch.delitem(OPERATORS, "Mul")
    u = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_allclose(program.run({"z": values[0]})["y"], values[0] @ u.T + 6, rtol=1e-5)
