"""Detectors against float64 NumPy, and the search on their bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Mixture
from unblemish.errors import BundleError, ConfigError, ShapeError
from unblemish.export.detector import write_detector_bundle
from unblemish.export.feature_graph import FeatureGraph
from unblemish.runtime.backends import open_backend
from unblemish.runtime.detectors.load import load_detector
from unblemish.runtime.detectors.padim import Padim
from unblemish.runtime.detectors.padim_low_rank import LowRankPadim
from unblemish.runtime.detectors.patchcore import PatchCore
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.options import SearchOptions

CHANNELS, SIDE, STRIDE = 6, 32, 4
CELLS = SIDE // STRIDE
# float32 sums of a few hundred products.
CLOSE = 1e-4


def network() -> FeatureGraph:
    """A strided convolution and a ReLU, any size, channels last."""
    weight = np.random.default_rng(0).normal(size=(CHANNELS, 1, 5, 5)).astype(np.float32) / 5
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], strides=[STRIDE] * 2, pads=[2, 2, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["features"], perm=[0, 2, 3, 1]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, "H", "W"])
    out = helper.make_tensor_value_info(
        "features", TensorProto.FLOAT, ["batch", "h", "w", CHANNELS]
    )
    graph = helper.make_graph(nodes, "net", [image], [out], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return FeatureGraph(model, "onnx", ("b",), STRIDE, STRIDE, 4, CHANNELS, weight.size, 1)


def packed_gaussians(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(CELLS**2, CHANNELS, CHANNELS))
    covariance = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(CHANNELS)
    w = np.linalg.inv(np.linalg.cholesky(covariance))
    rows, columns = np.tril_indices(CHANNELS)
    mean = rng.normal(size=(CELLS**2, CHANNELS))
    packed = np.ascontiguousarray(w[:, rows, columns], np.float32)
    return mean.astype(np.float32), packed, covariance


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    rng = np.random.default_rng(1)
    ramp = np.linspace(80, 160, SIDE)[None] + np.zeros((SIDE, 1))
    return np.stack([ramp + rng.normal(0, 2, (SIDE, SIDE)) for _ in range(24)]).astype(np.uint8)


@pytest.fixture(scope="module", params=["padim", "patchcore"])
def bundle(request: pytest.FixtureRequest, frames: np.ndarray, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    method, folder = request.param, tmp_path_factory.mktemp(request.param)
    source = folder / "net.onnx"
    graph = network()
    source.write_bytes(graph.model.SerializeToString())
    features = features_of(source, frames.astype(np.float32)[:, None] / 255)
    statistics: dict[str, np.ndarray] = {"bank": features[:8].reshape(-1, CHANNELS)}
    if method == "padim":
        flat = features.reshape(len(frames), -1, CHANNELS).astype(np.float64)
        mean = flat.mean(0)
        d = flat - mean
        covariance = np.einsum("nlc,nld->lcd", d, d) / len(d) + 1e-3 * np.eye(CHANNELS)
        w = np.linalg.inv(np.linalg.cholesky(covariance))
        rows, columns = np.tril_indices(CHANNELS)
        statistics = {
            "mean": mean.astype(np.float32),
            "whitening": w[:, rows, columns].astype(np.float32),
        }
    return write_detector_bundle(
        folder / "part.bundle", graph=graph, method=method, statistics=statistics,
        mixtures=[Mixture(means=((0.5,),), precisions=(((25.0,),),), weights=(1.0,))],
        preprocess={"width": SIDE, "height": SIDE, "channels": 1, "low": 0.0, "high": 1.0},
        normals=len(frames), seed=0, source=source, name="part",
    ).path  # fmt: skip


def features_of(path: Path, images: np.ndarray) -> np.ndarray:
    program = open_backend("onnxruntime", 1).program(str(path))
    return np.array(program.run({"image": images})["features"])


def test_padim_scores_are_mahalanobis_distances() -> None:
    mean, whitening, covariance = packed_gaussians(2)
    features = np.random.default_rng(3).normal(size=(2, CELLS, CELLS, CHANNELS))
    d = features.reshape(2, -1, CHANNELS) - mean
    expected = np.einsum("blc,lcd,bld->bl", d, np.linalg.inv(covariance), d)
    model = Padim(mean, whitening)
    found = model.scores(features.astype(np.float32))
    np.testing.assert_allclose(found.reshape(2, -1), expected, rtol=CLOSE)


def low_rank(seed: int, rank: int = 3) -> LowRankPadim:
    rng = np.random.default_rng(seed)
    root = np.linalg.qr(rng.normal(size=(CELLS**2, CHANNELS, CHANNELS)))[0][:, :, :rank]
    basis = root * rng.uniform(0.5, 0.9, (CELLS**2, 1, rank))
    inverse = rng.uniform(0.5, 2, CELLS**2)
    mean = rng.normal(size=(CELLS**2, CHANNELS))
    return LowRankPadim(*(a.astype(np.float32) for a in (mean, basis, inverse)))


def test_low_rank_scores_are_the_quadratic_form() -> None:
    model = low_rank(8)
    features = np.random.default_rng(9).normal(size=(2, CELLS, CELLS, CHANNELS))
    d = features.reshape(2, -1, CHANNELS) - model.mean
    b = model.basis.astype(np.float64)
    inverse = model.inverse_variance[:, None, None]
    precision = inverse * (np.eye(CHANNELS) - b @ b.transpose(0, 2, 1))
    expected = np.einsum("blc,lcd,bld->bl", d, precision, d)
    found = model.scores(features.astype(np.float32))
    np.testing.assert_allclose(found.reshape(2, -1), expected, rtol=CLOSE)


@pytest.mark.parametrize("name", ["padim", "low rank", "patchcore"])
def test_scorers_agree_with_scores_and_central_differences(name: str) -> None:
    rng = np.random.default_rng(4)
    mean, whitening, _ = packed_gaussians(5)
    bank = rng.normal(size=(40, CHANNELS)).astype(np.float32)
    models = {"padim": Padim(mean, whitening), "low rank": low_rank(5)}
    model = models.get(name) or PatchCore(bank, candidates=7)
    features = rng.normal(size=(1, CELLS**2, CHANNELS)).astype(np.float32)
    cells = np.arange(CELLS**2, dtype=np.int32)[None].copy()
    cells[0, ::3] = -1
    scorer = model.scorer(features, cells)
    cotangent = np.ones_like(features)
    scores = scorer(features, cotangent=cotangent)
    whole = model.scores(features.reshape(1, CELLS, CELLS, CHANNELS)).reshape(1, -1)
    np.testing.assert_allclose(scores[cells >= 0], whole[cells >= 0], rtol=1e-3)
    assert not scores[cells < 0].any()
    assert not cotangent[cells < 0].any()
    direction = rng.normal(size=features.shape).astype(np.float32)
    scratch, step = np.empty_like(features), np.float32(1e-3)
    up = scorer(features + step * direction, cotangent=scratch).astype(np.float64).sum()
    down = scorer(features - step * direction, cotangent=scratch).astype(np.float64).sum()
    slope = float((cotangent.astype(np.float64) * direction).sum())
    # Central differences of float32 sums: the step's square and the rounding of the sums.
    assert abs((up - down) / (2 * step) - slope) < 2e-2 * max(1.0, abs(slope))


def test_patchcore_scores_are_the_nearest_distances() -> None:
    rng = np.random.default_rng(6)
    bank = rng.normal(size=(301, CHANNELS)).astype(np.float32)
    features = rng.normal(size=(2, 3, 5, CHANNELS)).astype(np.float32)
    q = features.reshape(-1, CHANNELS).astype(np.float64)
    expected = np.square(q[:, None] - bank[None]).sum(2).min(1)
    np.testing.assert_allclose(PatchCore(bank).scores(features).ravel(), expected, rtol=CLOSE)


def test_statistics_of_another_grid_are_refused() -> None:
    mean, whitening, _ = packed_gaussians(7)
    with pytest.raises(ShapeError, match="Fit the bundle again"):
        Padim(mean, whitening).scores(np.zeros((1, 3, 3, CHANNELS), np.float32))
    with pytest.raises(ShapeError, match="bank"):
        PatchCore(mean).scores(np.zeros((1, 3, 3, CHANNELS + 1), np.float32))


def test_plain_map_rises_at_the_defect_alone(bundle: Path, frames: np.ndarray) -> None:
    frame = frames[0].copy()
    frame[12:18, 10:16] = 255
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        found, normal = inspector.search(frame), inspector.search(frames[0])
    assert found.status is Status.PLAIN
    assert found.evidence is not None
    assert normal.evidence is not None
    assert found.evidence > 2 * normal.evidence
    row, column = np.unravel_index(int(found.score.argmax()), found.score.shape)
    assert 8 <= row <= 22
    assert 6 <= column <= 20


def test_initial_outline_is_sharper_than_the_plain_map(bundle: Path, frames: np.ndarray) -> None:
    frame = frames[0].copy()
    truth = np.zeros(frame.shape, np.bool_)
    truth[13:17, 11:14] = True
    frame[truth] = 255

    def best(score: np.ndarray) -> float:
        levels = np.quantile(score, np.linspace(0, 1, 200))
        return max(
            2 * ((score > v) & truth).sum() / ((score > v).sum() + truth.sum()) for v in levels
        )

    maps = {}
    for refine in ("none", "initial"):
        with Inspector.open(bundle, refine=refine, threads=1) as inspector:
            maps[refine] = inspector.search(frame)
    assert best(maps["initial"].score) > best(maps["none"].score)
    assert maps["initial"].evidence == maps["none"].evidence


def test_f2pad_outlines_and_leaves_normal_frames_alone(bundle: Path, frames: np.ndarray) -> None:
    opened = Bundle.open(bundle)
    record = opened.manifest.detector
    assert record is not None
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        usual = max(float(inspector.search(f).evidence or 0) for f in frames)
    changed = record.model_copy(update={"mask_threshold": 1.1 * usual})
    ready = Bundle(opened.path, opened.manifest.model_copy(update={"detector": changed}))
    frame = frames[0].copy()
    truth = np.zeros(frame.shape, np.bool_)
    truth[12:18, 10:16] = True
    frame[truth] = 255
    with Inspector.open(ready, refine="f2pad", threads=1) as inspector:
        found, untouched = inspector.search(frame), inspector.search(frames[0])
    np.testing.assert_array_equal(found.mask > 0, found.score > 0.5 * found.score.max())
    flagged = found.mask > 0
    assert 2 * (flagged & truth).sum() / (flagged.sum() + truth.sum()) > 0.8
    assert not untouched.mask.any()
    assert untouched.score.max() < 0.5 * found.score.max()
    assert untouched.status is Status.PLAIN
    assert untouched.steps == 0
    np.testing.assert_allclose(untouched.restored, frames[0], atol=1)


def test_f2pad_asks_for_calibration(bundle: Path, frames: np.ndarray) -> None:
    with (
        Inspector.open(bundle, refine="f2pad", threads=1) as inspector,
        pytest.raises(BundleError, match="calibrate"),
    ):
        inspector.search(frames[0])


def test_refinements_of_generators_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="initial"):
        Inspector.open(bundle, refine="rgi")
    assert "initial" in SearchOptions(refine="initial").refine  # type: ignore[operator]


def test_bundles_with_foreign_statistics_are_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    record = opened.manifest.detector
    assert record is not None
    changed = record.model_copy(update={"channels": CHANNELS + 1})
    foreign = Bundle(opened.path, opened.manifest.model_copy(update={"detector": changed}))
    with pytest.raises(BundleError):
        load_detector(foreign, open_backend("onnxruntime", 1))
