"""One suite for forward/backward pairs of every engine family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backend_graphs import (
    BACKWARD,
    CONV_TOLERANCE,
    FORWARD,
    TANH,
    TOLERANCE,
    W,
    Write,
    gradient,
    latents,
    write_with_weight,
)

from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.backends import Backend, open_backend


def test_pair_gives_the_closed_form_for_changing_batch_sizes(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    pair = any_backend.pair(write(FORWARD), write(BACKWARD))
    assert [spec.name for spec in pair.inputs] == ["x"]
    assert [spec.name for spec in pair.outputs] == ["y", "norm"]
    for batch in (1, 4, 4, 19, 1):
        x, ct = latents(rng, batch), rng.standard_normal((batch, 3)).astype(np.float32)
        outputs = pair.forward({"x": x})
        assert set(outputs) == {"y", "norm"}
        y = np.tanh(np.maximum(x @ W, 0))
        np.testing.assert_allclose(outputs["y"], y, atol=TOLERANCE)
        np.testing.assert_allclose(outputs["norm"], (y * y).sum(1), atol=TOLERANCE)
        result = pair.backward({"y": ct})
        assert set(result) == {"x"}
        np.testing.assert_allclose(result["x"], gradient(x, ct), atol=TOLERANCE * 5)


def test_pair_goes_back_several_times_from_one_forward(
    any_backend: Backend, write: Write, rng: np.random.Generator
) -> None:
    pair = any_backend.pair(write(FORWARD), write(BACKWARD))
    x = latents(rng, 3)
    pair.forward({"x": x})
    for _ in range(3):
        ct = rng.standard_normal((3, 3)).astype(np.float32)
        np.testing.assert_allclose(
            pair.backward({"y": ct})["x"], gradient(x, ct), atol=TOLERANCE * 5
        )


def test_pair_refuses_to_go_back_first(any_backend: Backend, write: Write) -> None:
    pair = any_backend.pair(write(FORWARD), write(BACKWARD))
    with pytest.raises(BackendError, match="before forward"):
        pair.backward({"y": np.zeros((1, 3), np.float32)})


def test_pair_refuses_a_missing_cotangent(backend: Backend, write: Write) -> None:
    pair = backend.pair(write(FORWARD), write(BACKWARD))
    pair.forward({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(ShapeError, match="cotangent of output 'y'"):
        pair.backward({"norm": np.zeros(1, np.float32)})


def test_pair_hands_feature_maps_over(
    any_backend: Backend, rng: np.random.Generator, tmp_path: Path
) -> None:
    """A feature map inside, one that is an output as well, and an input kept for the way back."""
    torch = pytest.importorskip("torch")
    weight = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    forward = write_with_weight(
        "g (float[batch,4,h,w] x) => (float[batch,4,h,w] y, float[batch,4,h,w] map) "
        "{ c = Conv<pads=[1,1,1,1]>(x, W) map = Tanh(c) d = Conv<pads=[1,1,1,1]>(map, W) "
        "e = Mul(d, x) y = Sigmoid(e) }",
        weight,
        tmp_path / "forward.onnx",
    )
    backward = write_with_weight(
        "g (float[batch,4,h,w] x, float[batch,4,h,w] map, float[batch,4,h,w] y, "
        "float[batch,4,h,w] ct_y) => (float[batch,4,h,w] grad_x) {"
        "one = Constant<value = float {1}>() s = Sub(one, y) t = Mul(s, y) ct_e = Mul(t, ct_y) "
        "d = Conv<pads=[1,1,1,1]>(map, W) direct = Mul(ct_e, d) ct_d = Mul(ct_e, x) "
        "ct_map = ConvTranspose<pads=[1,1,1,1]>(ct_d, W) q = Mul(map, map) u = Sub(one, q) "
        "ct_c = Mul(ct_map, u) through = ConvTranspose<pads=[1,1,1,1]>(ct_c, W) "
        "grad_x = Add(direct, through) }",
        weight,
        tmp_path / "backward.onnx",
    )
    pair = any_backend.pair(forward, backward)
    for shape in ((1, 4, 6, 5), (2, 4, 3, 7), (1, 4, 6, 5)):
        x, ct = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        w = torch.tensor(weight).double()
        inner = torch.tanh(torch.nn.functional.conv2d(leaf, w, padding=1))
        y = torch.sigmoid(torch.nn.functional.conv2d(inner, w, padding=1) * leaf)
        y.backward(torch.tensor(ct).double())
        outputs = pair.forward({"x": x})
        assert set(outputs) == {"y"}
        np.testing.assert_allclose(outputs["y"], y.detach().numpy(), atol=CONV_TOLERANCE)
        result = pair.backward({"y": ct})["x"]
        np.testing.assert_allclose(result, leaf.grad.numpy(), atol=CONV_TOLERANCE * 10)


@pytest.mark.parametrize("batch", [1, 3])
def test_pair_refuses_a_cotangent_of_another_batch(batch: int, write: Write) -> None:
    # One engine: ONNX Runtime broadcasts, or fails in words of its own.
    pytest.importorskip("openvino")
    pair = open_backend("openvino", threads=1).pair(write(FORWARD), write(BACKWARD))
    pair.forward({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(ShapeError, match=rf"must have shape \(2, 3\); got \({batch}, 3\)"):
        pair.backward({"y": np.zeros((batch, 3), np.float32)})


def test_pair_refuses_graphs_that_do_not_belong_together(backend: Backend, write: Write) -> None:
    with pytest.raises(BackendError, match="do not belong together"):
        backend.pair(write(TANH), write(BACKWARD))


def test_pair_matches_autograd_on_a_convolution(
    any_backend: Backend, write: Write, rng: np.random.Generator, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    weight = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    forward = write_with_weight(
        "g (float[batch,2,h,w] x) => (float[batch,3,h,w] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, W) y = LeakyRelu<alpha=0.2>(c) }",
        weight,
        tmp_path / "forward.onnx",
    )
    backward = write_with_weight(
        "g (float[batch,3,h,w] y, float[batch,3,h,w] ct_y) => (float[batch,2,h,w] grad_x) {"
        "zero = Constant<value = float {0}>() slope = Constant<value = float {0.2}>()"
        "up = Greater(y, zero) low = Mul(ct_y, slope) g = Where(up, ct_y, low)"
        "grad_x = ConvTranspose<pads=[1,1,1,1]>(g, W) }",
        weight,
        tmp_path / "backward.onnx",
    )
    pair = any_backend.pair(forward, backward)
    for shape in ((1, 2, 7, 5), (3, 2, 4, 9), (1, 2, 1, 1)):
        x = rng.standard_normal(shape).astype(np.float32)
        ct = rng.standard_normal((shape[0], 3, *shape[2:])).astype(np.float32)
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        y = torch.nn.functional.leaky_relu(
            torch.nn.functional.conv2d(leaf, torch.tensor(weight).double(), padding=1), 0.2
        )
        y.backward(torch.tensor(ct).double())
        np.testing.assert_allclose(
            pair.forward({"x": x})["y"], y.detach().numpy(), atol=CONV_TOLERANCE
        )
        np.testing.assert_allclose(
            pair.backward({"y": ct})["x"], leaf.grad.numpy(), atol=CONV_TOLERANCE
        )
