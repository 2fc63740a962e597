"""From a folder and weights to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unblemish.bundle import Bundle
from unblemish.calibration.features.assembly import build_graph
from unblemish.calibration.features.fit import check_out, fit
from unblemish.calibration.features.images import model_batches, open_images
from unblemish.calibration.features.options import FitOptions
from unblemish.calibration.split import draw
from unblemish.errors import (
    CalibrationError,
    ConfigError,
    ModelError,
    SourceError,
    UnblemishError,
)
from unblemish.images import list_images, read_image

SIZE = 32
# float32 features and a float32 factor of condition about 1e2.
DISTANCE = 1e-3


def options(method: str = "padim", **changes: object) -> FitOptions:
    small = {"size": SIZE, "layers": ("layer1",), "selected": 8, "bank": 20, "folds": 0}
    settings = {**small, **changes}
    return FitOptions(method, **settings)  # type: ignore[arg-type]


def features_by_torch(model_images: np.ndarray, chosen: FitOptions, weights: Path) -> np.ndarray:
    oracle = build_graph(chosen, model_images.shape[1], weights).oracle
    with torch.no_grad():
        found: np.ndarray = oracle(torch.from_numpy(model_images)).numpy()
    return found.astype(np.float64)


def test_fit_padim_is_the_mahalanobis_distance_of_torch_features(
    normals: Path, weights: Path, tmp_path: Path
) -> None:
    chosen = options()
    bundle = fit(chosen, normals, weights, tmp_path / "p.bundle").bundle
    detector = Bundle.open(tmp_path / "p.bundle").manifest.detector
    assert detector is not None
    mean, whitening = (
        np.load(bundle.file(detector.statistics[name])) for name in ("mean", "whitening")
    )
    (images,) = model_batches(open_images(normals, chosen), 6)
    features = features_by_torch(images, chosen, weights).reshape(6, 64, 8)
    rows, columns = np.tril_indices(8)
    for place in (0, 27, 63):
        at = features[:, place]
        np.testing.assert_allclose(mean[place], at.mean(axis=0), rtol=1e-4, atol=1e-5)
        factor = np.zeros((8, 8))
        factor[rows, columns] = whitening[place]
        inverse = np.linalg.inv(np.cov(at.T, bias=True) + 0.01 * np.eye(8))
        apart = at[0] - at.mean(axis=0) + 0.3
        want = apart @ inverse @ apart
        assert np.sum((factor @ apart) ** 2) == pytest.approx(want, rel=DISTANCE)


def test_fit_records_what_inspection_needs(normals: Path, weights: Path, tmp_path: Path) -> None:
    report = fit(options(most=4, seed=3), normals, weights, tmp_path / "p.bundle", name="tile")
    manifest = report.bundle.manifest
    detector, p = manifest.detector, manifest.preprocess
    assert detector is not None
    assert (manifest.name, manifest.method, detector.normals, detector.seed) == (
        "tile", "padim", 4, 3,
    )  # fmt: skip
    assert (detector.backbone, detector.layers, detector.stride) == ("resnet18", ("layer1",), 4)
    assert (p.width, p.height, p.channels, p.low, p.high) == (SIZE, SIZE, 1, 0.0, 1.0)
    assert manifest.f2pad.decrease == 0.1
    assert len(detector.mixtures[0].weights) == 1
    assert "few" in report.notes[-1]


def test_fit_patchcore_keeps_features_of_the_images(
    normals: Path, weights: Path, tmp_path: Path
) -> None:
    chosen = options("patchcore", share=1.0)
    bundle = fit(chosen, normals, weights, tmp_path / "c.bundle").bundle
    bank = np.load(bundle.file("statistics/bank.npy"))
    assert bank.shape == (20, 64)
    (images,) = model_batches(open_images(normals, chosen), 6)
    features = features_by_torch(images, chosen, weights).reshape(-1, 64)
    apart = np.abs(features[:, None] - bank[None]).max(axis=2).min(axis=0)
    assert (apart <= 1e-4 * np.abs(features).max()).all()


def test_fit_is_the_same_again(normals: Path, weights: Path, tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        made = fit(options(seed=1), normals, weights, tmp_path / f"{name}.bundle", name="same")
        hashes.append(made.bundle.manifest.files)
    assert hashes[0] == hashes[1]


def test_fit_reports_every_stage(normals: Path, weights: Path, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def advance(stage: str, done: int, total: int) -> None:
        seen[stage] = (done, total)

    fit(options(), normals, weights, tmp_path / "p.bundle", advance=advance)
    assert set(seen) == {"reading", "features", "covariances", "pixels"}
    assert all(done == total for done, total in seen.values())


def test_open_images_holds_back_what_calibration_draws(normals: Path) -> None:
    images = open_images(normals, options(held_back=0.5, seed=7))
    assert list(images.held_back) == draw(list_images(normals), 0.5, 7)
    assert not set(images.held_back) & set(images.paths)
    assert len(images) == 3


def test_open_images_sets_unreadable_files_aside(normals: Path) -> None:
    (normals / "broken.png").write_bytes(b"no image")
    (normals / "2.png").write_bytes((normals / "2.png").read_bytes()[:100])
    images = open_images(normals, options())
    assert len(images) == 5
    assert [path.name for path, _ in images.rejected] == ["2.png", "broken.png"]
    assert "truncated" in images.rejected[0][1]


def test_model_images_are_those_of_inspection(normals: Path) -> None:
    from unblemish.runtime.geometry import Geometry

    chosen = options(geometry="tiles")
    images = open_images(normals, chosen)
    want = Geometry(images.preprocess).to_model(read_image(images.paths[0]))
    assert len(want) == 4  # 44 x 40 in tiles of 32
    got = np.concatenate(list(model_batches(images, 5)))
    np.testing.assert_array_equal(got[:4], want)
    assert len(got) == 24


def no_images(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def one_image(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def damaged_images(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (no_images, SourceError, "no image in"),
        (damaged_images, SourceError, "none of the 6 images"),
        (one_image, CalibrationError, "one was usable"),
    ],
)
@pytest.mark.parametrize("method", ["padim", "patchcore", "cflow"])
def test_fit_refuses_bad_folders(
    spoil: Callable[[Path], None], error: type[UnblemishError], words: str, method: str,
    normals: Path, weights: Path, tmp_path: Path,
) -> None:  # fmt: skip
    spoil(normals)
    with pytest.raises(error, match=words):
        fit(options(method), normals, weights, tmp_path / "x.bundle")
    assert not (tmp_path / "x.bundle").exists()


def test_fit_refuses_missing_weights(normals: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"resnet18\.pth"):
        fit(options(), normals, tmp_path / "none.pth", tmp_path / "x.bundle")


def test_fit_refuses_weights_of_another_network(normals: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="none of resnet18"):
        fit(options(), normals, tmp_path / "other.pth", tmp_path / "x.bundle")


def test_fit_refuses_a_layer_the_weights_lack(normals: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="layer3"):
        fit(options(layers=("layer3",)), normals, weights, tmp_path / "x.bundle")


@pytest.mark.parametrize(
    "changes",
    [{"size": 0}, {"channels": 2}, {"held_back": 1.0}, {"share": -1.0}, {"geometry": "crop"},
     {"shrinkage": "x"}, {"selected": -1}, {"overlap": 0.95}, {"blocks": 0}, {"steps": 0},
     {"rate": 0.0}, {"noise": -0.1}, {"minutes": 0.0}, {"folds": 1}, {"folds": -4}],
)  # fmt: skip
def test_options_refuse_wrong_settings(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        options(**changes)


def test_check_out_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        check_out(tmp_path / "file")
    with pytest.raises(ConfigError, match="other things"):
        check_out(tmp_path)
    check_out(tmp_path / "new.bundle")
