"""Detectors on a network of the user's own, given as .onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from unblemish.bundle import Bundle
from unblemish.calibration.features.fit import fit
from unblemish.calibration.features.flow_training import Training
from unblemish.calibration.features.images import model_batches, open_images
from unblemish.calibration.features.options import FitOptions
from unblemish.errors import ConfigError, ModelError
from unblemish.export.feature_graph import MEAN, STD
from unblemish.runtime.inspector import Inspector

SIZE = 32
DISTANCE = 1e-3  # float32 features and a float32 factor of condition about 1e2
KERNELS = {"w1": (4, 3, 4, 4), "w2": (6, 4, 3, 3)}


def kernels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in KERNELS.items()}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Cells of 4 and 8 pixels from colour images of 48 x 48, the size that is stated."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], strides=[4, 4]),
        helper.make_node("Relu", ["c1"], ["fine"]),
        helper.make_node("Conv", ["fine", "w2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["coarse"]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 48, 48])
    ends = [
        helper.make_tensor_value_info("fine", TensorProto.FLOAT, [1, 4, 12, 12]),
        helper.make_tensor_value_info("coarse", TensorProto.FLOAT, [1, 6, 6, 6]),
    ]
    held = [numpy_helper.from_array(array, name) for name, array in kernels().items()]
    graph = helper.make_graph(nodes, "g", [image], ends, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def features(images: np.ndarray) -> np.ndarray:
    w = {n: torch.from_numpy(a) for n, a in kernels().items()}
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    x = (torch.from_numpy(images).expand(-1, 3, -1, -1) - mean) / std
    fine = functional.conv2d(x, w["w1"], stride=4).relu()
    coarse = functional.conv2d(fine, w["w2"], stride=2, padding=1).relu()
    both = torch.cat([fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
    return both.permute(0, 2, 3, 1).double().numpy()


def test_padim_is_the_mahalanobis_distance_of_the_networks_features(
    network: Path, normals: Path, tmp_path: Path
) -> None:
    chosen = FitOptions("padim", size=SIZE, selected=0)
    bundle = fit(chosen, normals, network, tmp_path / "p.bundle").bundle
    record = Bundle.open(bundle.path).manifest.detector
    assert record is not None
    assert (record.backbone, record.layers) == ("onnx", ("fine", "coarse"))
    assert (record.stride, record.align, record.channels) == (4, 8, 10)
    (images,) = model_batches(open_images(normals, chosen), 6)
    learned = features(images).reshape(6, 64, 10)
    mean = np.load(bundle.file(record.statistics["mean"]))
    whitening = np.load(bundle.file(record.statistics["whitening"]))
    rows, columns = np.tril_indices(10)
    for place in (0, 37):
        at = learned[:, place]
        np.testing.assert_allclose(mean[place], at.mean(axis=0), rtol=1e-4, atol=1e-5)
        factor = np.zeros((10, 10))
        factor[rows, columns] = whitening[place]
        inverse = np.linalg.inv(np.cov(at.T, bias=True) + 0.01 * np.eye(10))
        apart = at[0] - at.mean(axis=0) + 0.3
        assert np.sum((factor @ apart) ** 2) == pytest.approx(apart @ inverse @ apart, rel=DISTANCE)


@pytest.mark.parametrize("method", ["padim", "patchcore", "cflow"])
def test_every_detector_finds_a_spot_with_it(
    method: str, network: Path, normals: Path, tmp_path: Path
) -> None:
    options = FitOptions(method, size=SIZE, steps=60, noise=0.1, share=1.0, folds=0)  # type: ignore[arg-type]
    bundle = fit(options, normals, network, tmp_path / "p.bundle").bundle
    assert bundle.manifest.model.source == "net.onnx"
    from unblemish.images import read_image

    frame = read_image(sorted(normals.iterdir())[0])
    spoilt = frame.copy()
    spoilt[18:26, 14:22] = 255
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        found, usual = inspector.search(spoilt), inspector.search(frame)
    assert found.evidence is not None
    assert usual.evidence is not None
    assert found.evidence > 1.3 * usual.evidence
    row, column = np.unravel_index(int(found.score.argmax()), found.score.shape)
    assert 14 <= row <= 30
    assert 10 <= column <= 26


def test_few_images_take_the_finest_two_outputs(
    network: Path, normals: Path, tmp_path: Path
) -> None:
    options = FitOptions("cflow", size=SIZE, steps=5, folds=0)
    report = fit(options, normals, network, tmp_path / "p.bundle")
    assert "fine, coarse" in report.notes[0]
    assert Training().steps == FitOptions("cflow").steps  # one default, stated twice


def test_layers_that_are_missing_are_named_before_any_image_is_read(
    network: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no tensor 'layer1'.*outputs are fine, coarse"):
        fit(
            FitOptions("padim", layers=("layer1",)),
            tmp_path / "none",
            network,
            tmp_path / "x.bundle",
        )


def test_settings_of_the_other_kind_of_network_are_refused(
    network: Path, weights: Path, normals: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--backbone"):
        fit(FitOptions("padim", backbone="resnet18"), normals, network, tmp_path / "x.bundle")
    with pytest.raises(ConfigError, match="mean and std"):
        fit(FitOptions("padim", mean=(0.5,)), normals, weights, tmp_path / "x.bundle")


def test_a_damaged_file_is_refused(normals: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no valid ONNX model|must have one input"):
        fit(FitOptions("padim"), normals, tmp_path / "net.onnx", tmp_path / "x.bundle")
