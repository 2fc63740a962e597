"""A feature extractor of the user's own as a perceptual loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from unblemish.bundle import Bundle
from unblemish.errors import ConfigError, ModelError
from unblemish.export.build import build_bundle
from unblemish.export.options import ExportOptions
from unblemish.runtime.inspector import Inspector

ONE = onnx.TensorProto.FLOAT


def _extractor(path: Path, channels: int = 1, size: int | str = "h") -> Path:
    """Two feature maps: a Relu convolution, and the mean of its square."""
    kernel = np.random.default_rng(0).standard_normal((3, channels, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["first"]),
        helper.make_node("Mul", ["first", "first"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["second"]),
    ]
    x = helper.make_tensor_value_info("x", ONE, [1, channels, size, size])
    shape = ["n", "maps", "rows", "columns"]
    outputs = [helper.make_tensor_value_info(n, ONE, shape) for n in ("first", "second")]
    graph = helper.make_graph(nodes, "g", [x], outputs, [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_features_become_a_term_of_the_search(
    vae_checkpoint: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    options = ExportOptions(features=_extractor(tmp_path / "f.onnx"), feature_weight=0.5)
    bundle = build_bundle(vae_checkpoint, tmp_path / "part.bundle", options=options)
    manifest = Bundle.open(bundle.path).manifest
    assert manifest.rgi.feature_weight == 0.5
    assert manifest.parity["features_differences"] < 0.05
    roles = {t.name: t.role for t in manifest.graphs["features_forward"].outputs}
    assert roles["first"] == roles["second"] == "feature"

    frame = rng.uniform(0, 1, (16, 16)).astype(np.float32)
    with Inspector.open(bundle) as inspector:
        found = inspector.search(frame)
    with Inspector.open(bundle.with_rgi(feature_weight=0.0)) as inspector:
        plain = inspector.search(frame)
    assert np.isfinite(found.objective)
    assert found.objective > plain.objective  # the term is there, and not negative


@pytest.mark.parametrize(("channels", "size"), [(3, "h"), (1, 24)])
def test_features_of_other_images_are_refused(
    channels: int, size: int | str, vae_checkpoint: Path, tmp_path: Path
) -> None:
    path = _extractor(tmp_path / "f.onnx", channels, size)
    with pytest.raises(ModelError, match=r"images \(batch, 1, 16, 16\).*its inputs are: x"):
        build_bundle(vae_checkpoint, tmp_path / "part.bundle", options=ExportOptions(features=path))
    assert not (tmp_path / "part.bundle").exists()


def test_features_that_are_no_model_are_refused(vae_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_text("no model")
    with pytest.raises(ModelError, match="no valid ONNX model"):
        build_bundle(
            vae_checkpoint, tmp_path / "b", options=ExportOptions(features=tmp_path / "f.onnx")
        )


def test_feature_weight_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="feature weight"):
        ExportOptions(feature_weight=0.0)
