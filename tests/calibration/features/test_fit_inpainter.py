"""An inpainter of the user's own travels with the bundle and starts F2PAD's search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from unblemish.bundle import Bundle
from unblemish.calibration.features.fit import fit
from unblemish.calibration.features.options import FitOptions
from unblemish.errors import BundleError, ConfigError, ModelError
from unblemish.images import read_image
from unblemish.runtime import feature_search
from unblemish.runtime.backends import open_backend
from unblemish.runtime.feature_search import FeatureSearch
from unblemish.runtime.inpainting import OnnxInpainter, load_inpainter
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.options import SearchOptions

OPTIONS = FitOptions("padim", size=32, selected=0)
FILL = 0.47  # about the mean of the normal images


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A feature network of one convolution; cells of 4 pixels."""
    kernel = np.random.default_rng(0).standard_normal((6, 1, 6, 6)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["cells"], strides=[4, 4], pads=[1, 1, 1, 1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])
    y = helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["n", 6, "r", "c"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Fills with one colour; images of 16 x 16."""
    fill = numpy_helper.from_array(np.array(FILL, np.float32), "fill")
    nodes = [
        helper.make_node("Sub", ["fill", "image"], ["apart"]),
        helper.make_node("Mul", ["apart", "mask"], ["moved"]),
        helper.make_node("Add", ["image", "moved"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 16, 16])
        for n in ("image", "mask", "y")
    ]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], [fill])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "mae.onnx")
    return tmp_path / "mae.onnx"


@pytest.fixture
def bundle(network: Path, weights: Path, normals: Path, tmp_path: Path) -> Bundle:
    return fit(OPTIONS, normals, weights, tmp_path / "p.bundle", inpainter=network).bundle


def ready(bundle: Bundle, threshold: float) -> Bundle:
    record = bundle.manifest.detector
    assert record is not None
    changed = record.model_copy(update={"mask_threshold": threshold})
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"detector": changed}))


def test_the_bundle_records_it(bundle: Bundle) -> None:
    manifest = Bundle.open(bundle.path).manifest
    record = manifest.graphs["inpainter"]
    assert [(t.name, t.role, t.shape) for t in record.inputs] == [
        ("image", "image", (1, 1, 16, 16)), ("mask", "mask", (1, 1, 16, 16)),
    ]  # fmt: skip
    assert [(t.name, t.role) for t in record.outputs] == [("restored", "image")]
    assert record.flops > 0
    assert record.file in manifest.files


def test_it_fills_only_the_hole(bundle: Bundle) -> None:
    inpainter = load_inpainter(bundle, open_backend("onnxruntime", 1))
    assert isinstance(inpainter, OnnxInpainter)
    image = np.random.default_rng(0).random((40, 44, 1), dtype=np.float32)
    hole = np.zeros((40, 44), np.bool_)
    hole[8:24, 9:30] = True
    filled = inpainter(image, hole)
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    np.testing.assert_allclose(filled[13:19, 14:25], FILL, atol=1e-5)


def test_f2pad_starts_from_it(
    bundle: Bundle, normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = read_image(sorted(normals.iterdir())[0])
    frame[16:26, 14:24] = 255
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        peak = inspector.search(frame).evidence
    assert peak is not None
    given: list[Any] = []
    made: Any = vars(feature_search)["F2pad"]

    def spy(*arguments: Any, **named: Any) -> Any:
        given.append(named["inpainter"])
        return made(*arguments, **named)

    monkeypatch.setattr(feature_search, "F2pad", spy)
    holes: list[np.ndarray] = []
    fill = OnnxInpainter.__call__

    def counted(one: OnnxInpainter, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        holes.append(hole)
        return fill(one, image, hole)

    monkeypatch.setattr(OnnxInpainter, "__call__", counted)
    search = FeatureSearch(ready(bundle, 0.5 * peak), SearchOptions(refine="f2pad", threads=1))
    for _ in range(2):
        found = search(frame)
    assert len(given) == 1
    assert isinstance(given[0], OnnxInpainter)
    assert len(holes) == 2
    assert holes[0][18:24, 16:22].all()
    assert found.mask[18:24, 16:22].mean() > 0.5


def test_without_one_the_classical_inpainter_starts(
    weights: Path, normals: Path, tmp_path: Path
) -> None:
    bundle = fit(OPTIONS, normals, weights, tmp_path / "q.bundle").bundle
    assert "inpainter" not in bundle.manifest.graphs
    assert load_inpainter(bundle, open_backend("onnxruntime", 1)) is None


def test_a_known_hole_is_filled_by_it_alone(bundle: Bundle) -> None:
    frame = np.random.default_rng(1).integers(115, 125, (40, 50), np.uint8)
    hole = np.zeros(frame.shape, np.bool_)
    hole[10:20, 12:30] = True
    with Inspector.open(bundle) as inspector:
        filled = inspector.inpaint(frame, hole)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    assert np.abs(filled[hole] - 255 * FILL).max() <= 2  # frames are resampled there and back


def test_a_known_hole_without_one_is_refused(normals: Path, weights: Path, tmp_path: Path) -> None:
    bundle = fit(OPTIONS, normals, weights, tmp_path / "bare.bundle").bundle
    frame, hole = np.zeros((40, 50), np.uint8), np.ones((40, 50), np.bool_)
    with (
        Inspector.open(bundle) as inspector,
        pytest.raises(ConfigError, match="holds no inpainter"),
    ):
        inspector.inpaint(frame, hole)


def test_a_damaged_inpainter_is_refused(bundle: Bundle) -> None:
    file = bundle.path / "graphs" / "inpainter.onnx"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(BundleError, match=r"inpainter\.onnx' differs from the manifest"):
        Bundle.open(bundle.path)


def test_a_wrong_inpainter_is_refused_before_any_image_is_read(
    network: Path, weights: Path, tmp_path: Path
) -> None:
    model = onnx.load(network)
    model.graph.input[1].name = "other"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "mask":
                node.input[index] = "other"
    onnx.save(model, network)
    with pytest.raises(ModelError, match="takes 'image'"):
        fit(OPTIONS, tmp_path / "none", weights, tmp_path / "x.bundle", inpainter=network)
    assert not (tmp_path / "x.bundle").exists()


def test_inspection_with_it_imports_no_onnx(bundle: Bundle, normals: Path, tmp_path: Path) -> None:
    from unblemish.bundle import update_bundle

    update_bundle(bundle, detector=ready(bundle, 1e-3).manifest.detector.model_dump())  # type: ignore[union-attr]
    frame = sorted(normals.iterdir())[0]
    script = (
        "import sys, cv2, unblemish\n"
        f"with unblemish.Inspector.open({str(bundle.path)!r}, refine='f2pad', threads=1) as i:\n"
        f"    i.search(cv2.imread({str(frame)!r}, 0))\n"
        "print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
