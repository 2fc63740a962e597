"""Inpainting: holes become what surrounds them, the rest stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unblemish.errors import ConfigError, ModelError
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.inpainting import ClassicalInpainter, OnnxInpainter, SearchInpainter

# A ramp of 0.6 over the frame, filled from the border: what the methods themselves are wrong by.
FILL = 0.05


def ramp(height: int, width: int, channels: int) -> np.ndarray:
    line = np.linspace(0.2, 0.8, width, dtype=np.float32)
    return np.repeat(np.tile(line, (height, 1))[:, :, None], channels, axis=2)


@pytest.mark.parametrize("method", ["telea", "navier-stokes"])
@pytest.mark.parametrize("channels", [1, 3])
def test_holes_are_filled_from_their_border(method: str, channels: int) -> None:
    clean = ramp(120, 160, channels)
    hole = np.zeros((120, 160), np.bool_)
    hole[40:70, 60:100] = hole[0:8, 0:8] = True
    damaged = np.where(hole[:, :, None], np.float32(1), clean)
    filled = ClassicalInpainter(method)(damaged, hole)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[~hole], clean[~hole])
    np.testing.assert_allclose(filled[hole], clean[hole], atol=FILL)


def test_large_holes_are_filled_at_reduced_size() -> None:
    clean = ramp(900, 1200, 1)
    hole = np.zeros((900, 1200), np.bool_)
    hole[200:700, 300:800] = True
    filled = ClassicalInpainter()(np.where(hole[:, :, None], np.float32(0), clean), hole)
    np.testing.assert_array_equal(filled[~hole], clean[~hole])
    # The dark hole does not leak in; far inside, the fill only knows the border.
    assert np.abs(filled - clean)[hole].max() < 0.3
    assert np.abs(filled - clean)[hole].mean() < FILL


def test_a_frame_that_is_all_hole_becomes_its_median() -> None:
    filled = ClassicalInpainter()(ramp(10, 11, 3), np.ones((10, 11), np.bool_))
    np.testing.assert_allclose(filled, 0.5, atol=1e-6)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="telea"):
        ClassicalInpainter("guess")


def test_search_restores_the_hole_alone() -> None:
    hole = np.zeros((6, 8), np.bool_)
    hole[2:4] = True
    filled = SearchInpainter(lambda image: np.zeros_like(image))(ramp(6, 8, 1), hole)
    assert not filled[hole].any()
    np.testing.assert_array_equal(filled[~hole], ramp(6, 8, 1)[~hole])


def graph(path: Path, *, symbolic: bool = False) -> str:
    """An inpainter that fills with mask / 4, of images (1, 3, 16, 16)."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    side = "h" if symbolic else 16
    kind = onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Mul", ["mask", "quarter"], ["fill"]),
                helper.make_node("Mul", ["image", "zero"], ["nothing"]),
                helper.make_node("Add", ["nothing", "fill"], ["restored"]),
            ],
            "g",
            [
                helper.make_tensor_value_info("image", kind, [1, 3, side, side]),
                helper.make_tensor_value_info("mask", kind, [1, 1, side, side]),
            ],
            [helper.make_tensor_value_info("restored", kind, [1, 3, side, side])],
            [
                numpy_helper.from_array(np.array(0.25, np.float32), "quarter"),
                numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_fills_holes_of_frames_of_any_size(tmp_path: Path, channels: int) -> None:
    inpainter = OnnxInpainter(OrtBackend(1), graph(tmp_path / "mae.onnx"))
    hole = np.zeros((40, 50), np.bool_)
    hole[10:30, 10:30] = True
    filled = inpainter(ramp(40, 50, channels), hole)
    np.testing.assert_array_equal(filled[~hole], ramp(40, 50, channels)[~hole])
    np.testing.assert_allclose(filled[14:26, 14:26], 0.25, atol=1e-6)


def test_a_network_of_another_interface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fixed C, h and w"):
        OnnxInpainter(OrtBackend(1), graph(tmp_path / "mae.onnx", symbolic=True))
