"""CFLOW-AD from images to masks, as a user has it: fit, calibrate, inspect."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from unblemish.bundle import Bundle, update_bundle
from unblemish.cli import main
from unblemish.errors import BundleError
from unblemish.runtime.backends import open_backend
from unblemish.runtime.detectors.load import load_detector
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector

Command = Callable[..., Any]
SIDE = 64
TRUTH = (slice(24, 36), slice(20, 34))


def images(count: int, seed: int) -> np.ndarray:
    """Stripes with noise: what is normal hangs on the row."""
    rng = np.random.default_rng(seed)
    stripes: np.ndarray = 110 + 30 * np.sin(np.arange(SIDE) / 5)[:, None]
    noisy = stripes + rng.normal(0, 3, (count, SIDE, SIDE))
    found: np.ndarray = np.asarray(np.clip(noisy, 0, 255), np.uint8)
    return found


def network(path: Path) -> Path:
    """Cells of 4 and 8 pixels."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 1, 4, 4), "w2": (8, 6, 2, 2)}
    held = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 2, n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[4, 4]),
        helper.make_node("LeakyRelu", ["a"], ["fine"], alpha=0.3),
        helper.make_node("Conv", ["fine", "w2"], ["b"], strides=[2, 2]),
        helper.make_node("LeakyRelu", ["b"], ["coarse"], alpha=0.3),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, f"h{c}", f"w{c}"])
        for n, c in (("fine", 6), ("coarse", 8))
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])
    graph = helper.make_graph(nodes, "g", [image], ends, held)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, fitted and calibrated by the command line."""
    folder = tmp_path_factory.mktemp("cflow")
    for name, count, seed in (("fitted", 20, 1), ("held", 12, 2)):
        (folder / name).mkdir()
        for number, image in enumerate(images(count, seed)):
            cv2.imwrite(str(folder / name / f"{number:02}.png"), image)
    bundle = folder / "part.bundle"
    asked: list[Any] = ["fit", "cflow", "--normals", folder / "fitted", "--out", bundle,
                        "--weights", network(folder / "net.onnx"), "--size", SIDE, "--blocks", 4,
                        "--steps", 150, "--threads", 1, "--folds", 0]  # fmt: skip
    for command in (asked, ["calibrate", bundle, "--normals", folder / "held", "--images", 8]):
        assert main([str(part) for part in command]) == 0
    return bundle


@pytest.fixture
def spoilt() -> np.ndarray:
    frame = images(1, 3)[0]
    frame[TRUTH] = 235
    return frame


def test_the_bundle_holds_flows_of_both_maps(ready: Path) -> None:
    manifest = Bundle.open(ready).manifest
    assert manifest.method == "cflow"
    assert manifest.detector is not None
    assert [(m.channels, m.stride) for m in manifest.detector.maps] == [(6, 4), (8, 8)]
    assert manifest.detector.smoothing_sigma == 2.0
    assert {"flow", "flow_forward", "flow_backward"} <= manifest.graphs.keys()
    assert [t.role for t in manifest.graphs["flow"].inputs] == ["feature", "position",
                                                                 "position"] * 2  # fmt: skip
    assert manifest.graphs["flow"].flops > 0
    assert manifest.parity["likelihood"] < 1e-3
    assert manifest.parity["likelihood_gradient"] < 1e-4


# `initial` compares with a median, which a spot of a fifth of the frame bends.
@pytest.mark.parametrize(("refine", "least"), [("none", 0.4), ("initial", 0.4), ("f2pad", 0.8)])
def test_inspection_outlines_the_spot(
    ready: Path, spoilt: np.ndarray, refine: str, least: float
) -> None:
    truth = np.zeros((SIDE, SIDE), np.bool_)
    truth[TRUTH] = True
    with Inspector.open(ready, refine=refine, threads=1) as inspector:
        found = inspector.search(spoilt)
        normal = inspector.search(images(1, 4)[0])
    levels = np.quantile(found.score, np.linspace(0, 1, 300))
    best = max(
        2 * ((found.score > v) & truth).sum() / ((found.score > v).sum() + truth.sum())
        for v in levels
    )
    assert best > least
    assert found.evidence is not None
    assert normal.evidence is not None
    assert found.evidence > 1.5 * normal.evidence
    assert found.status in (Status.PLAIN, Status.CONVERGED, Status.MAX_STEPS)


def test_a_copied_bundle_gives_the_same(ready: Path, spoilt: np.ndarray, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "copy.bundle")
    update_bundle(Bundle.open(tmp_path / "copy.bundle"), name="renamed")
    maps = []
    for path in (ready, tmp_path / "copy.bundle"):
        with Inspector.open(path, refine="none", threads=1) as inspector:
            maps.append(inspector.search(spoilt).score)
    np.testing.assert_array_equal(maps[0], maps[1])


@pytest.mark.parametrize("role", ["flow", "flow_forward", "flow_backward"])
def test_a_corrupt_flow_is_refused(ready: Path, tmp_path: Path, role: str) -> None:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(ready, copy)
    file = copy / "graphs" / f"{role}.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=rf"graphs/{role}\.onnx' differs from the manifest"):
        Inspector.open(copy)


def changed(ready: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Bundle:
    shutil.copytree(ready, folder / "copy.bundle")
    manifest = folder / "copy.bundle" / "manifest.json"
    fields = json.loads(manifest.read_text())
    change(fields)
    manifest.write_text(json.dumps(fields))
    return Bundle.open(folder / "copy.bundle")


def without_flow(fields: dict[str, Any]) -> None:
    del fields["graphs"]["flow"]


def without_maps(fields: dict[str, Any]) -> None:
    fields["detector"]["maps"] = []


def with_another_map(fields: dict[str, Any]) -> None:
    fields["detector"]["maps"][1]["channels"] = 9


def without_typical(fields: dict[str, Any]) -> None:
    fields["detector"]["statistics"] = {}


@pytest.mark.parametrize(
    ("change", "words"),
    [(without_flow, "no 'flow' graph"), (without_maps, "maps do not fit"),
     (with_another_map, "maps do not fit"), (without_typical, "no statistics 'typical'")],
)  # fmt: skip
def test_a_bundle_that_lacks_a_part_is_refused(
    ready: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    bundle = changed(ready, tmp_path, change)
    with pytest.raises(BundleError, match=words):
        load_detector(bundle, open_backend("onnxruntime", 1))


@pytest.mark.parametrize("refine", ["none", "f2pad"])
def test_inspection_imports_neither_torch_nor_onnx(
    ready: Path, spoilt: np.ndarray, tmp_path: Path, refine: str
) -> None:
    np.save(tmp_path / "frame.npy", spoilt)
    script = (
        "import json, sys, numpy, unblemish\n"
        f"with unblemish.Inspector.open({str(ready)!r}, refine={refine!r}, threads=1) as i:\n"
        f"    i.inspect(numpy.load({str(tmp_path / 'frame.npy')!r}))\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "onnx", "sklearn", "matplotlib"} & set(json.loads(done.stdout))


def test_fit_refuses_one_image_and_wrong_settings(run: Command, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "0.png"), images(1, 0)[0])
    asked = ("fit", "cflow", "--normals", tmp_path / "one", "--out", tmp_path / "x.bundle",
             "--weights", network(tmp_path / "net.onnx"), "--size", SIDE)  # fmt: skip
    for more, word in (((), "one was usable"), (("--blocks", 0), "blocks must be positive"),
                       (("--noise", 11), "noise must lie")):  # fmt: skip
        result = run(*asked, *more)
        assert result.code == 2
        assert word in result.err
        assert not (tmp_path / "x.bundle").exists()
