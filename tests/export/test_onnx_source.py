"""Any ONNX generator as it is: what is accepted, what is understood, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from unblemish.errors import ConfigError, ModelError
from unblemish.export.build import build_bundle, plan
from unblemish.export.keep_batch import keep_batch
from unblemish.export.onnx_source import open_onnx
from unblemish.export.options import ExportOptions

FLAT = """
<ir_version: 8, opset_import: ["" : 17]>
generator (float[N, 5] noise) => (float[N, 1, 8, 8] picture)
<int64[4] target = {-1, 1, 8, 8}>
{
   product = MatMul(noise, w)
   square = Reshape(product, target)
   picture = Tanh(square)
}
"""
# As DCGANs come: a latent of four dimensions, fixed to a batch of one, names that clash with ours.
FIXED = """
<ir_version: 8, opset_import: ["" : 13]>
generator (float[1, 5, 1, 1] noise) => (float[1, 3, 4, 6] out)
<int64[2] flat = {1, 5}, int64[4] target = {1, 3, 4, 6}>
{
   z = Reshape(noise, flat)
   image = MatMul(z, w)
   grown = Reshape(image, target)
   out = Sigmoid(grown)
}
"""


def _model(text: str, rng: np.random.Generator) -> onnx.ModelProto:
    model = parser.parse_model(text)
    columns = 72 if "grown" in text else 64
    values = rng.standard_normal((5, columns)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    return model


def _write(tmp_path: Path, text: str, rng: np.random.Generator) -> Path:
    path = tmp_path / "generator.onnx"
    onnx.save(_model(text, rng), str(path))
    return path


def test_onnx_generator_is_exported_as_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    path = _write(tmp_path, FLAT, rng)
    manifest = build_bundle(path, tmp_path / "part.bundle").manifest
    assert (manifest.model.kind, manifest.model.latent_size) == ("onnx", 5)
    assert manifest.model.parameters == 5 * 64
    p = manifest.preprocess
    assert (p.width, p.height, p.channels, p.low, p.high) == (8, 8, 1, -1.0, 1.0)
    assert manifest.parity["gradient_pair"] < 1e-5


def test_onnx_generator_fixed_to_one_image_is_freed(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _write(tmp_path, FIXED, rng)
    manifest = build_bundle(path, tmp_path / "part.bundle").manifest
    forward = manifest.graphs["generator_forward"]
    assert [t.shape for t in forward.inputs] == [("batch", 5)]
    assert next(t.shape for t in forward.outputs if t.role == "image") == ("batch", 3, 4, 6)
    assert (manifest.preprocess.low, manifest.preprocess.high) == (0.0, 1.0)
    assert (manifest.preprocess.width, manifest.preprocess.height) == (6, 4)
    assert manifest.parity["image_generator"] < 1e-6  # against the file itself, one by one


def test_onnx_generator_whose_deep_latent_is_called_z_is_exported(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    text = FIXED.replace("   z = Reshape", "   line = Reshape").replace("MatMul(z,", "MatMul(line,")
    path = _write(tmp_path, text.replace("noise", "z"), rng)
    manifest = build_bundle(path, tmp_path / "part.bundle").manifest
    assert [t.name for t in manifest.graphs["generator"].inputs] == ["z"]
    assert manifest.parity["image_generator"] < 1e-6


def test_onnx_generator_that_mixes_its_batch_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    text = FLAT.replace("float[N, 5] noise", "float[1, 5] noise").replace(
        "picture = Tanh(square)",
        "mean = ReduceMean<axes = [0], keepdims = 1>(square)\n   raised = Sub(square, mean)\n"
        "   picture = Tanh(raised)",
    )
    with pytest.raises(ModelError, match="export refused: image_generator"):
        build_bundle(_write(tmp_path, text, rng), tmp_path / "part.bundle")


def test_onnx_generator_finetunes_its_own_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    path = _write(tmp_path, FLAT, rng)
    options = ExportOptions(finetune=True)
    manifest = build_bundle(path, tmp_path / "part.bundle", options=options).manifest
    weights = [t for t in manifest.graphs["finetune_forward"].inputs if t.role == "weight"]
    assert [(t.name, t.shape) for t in weights] == [("w", (5, 64))]
    assert manifest.parity["gradient_weights"] < 1e-5


def test_onnx_range_must_be_stated_where_it_cannot_be_read(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _write(tmp_path, FLAT.replace("Tanh(square)", "Softplus(square)"), rng)
    with pytest.raises(ConfigError, match=r"--range=-1,1"):
        open_onnx(path, ExportOptions())
    source = open_onnx(path, ExportOptions(value_range=(0.0, 4.0)))
    assert (source.low, source.high) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("float[N, 5] noise)", "float[N, 5] noise, float[N, 5] style)", "noise, style"),
        ("float[N, 5] noise)", "float[N, M] noise)", "fixed length"),
        ("float[N, 1, 8, 8] picture", "float[N, 64] product", "rank|shape"),
    ],
)
def test_onnx_model_that_is_no_generator_is_refused(
    tmp_path: Path, rng: np.random.Generator, old: str, new: str, message: str
) -> None:
    path = _write(tmp_path, FLAT.replace(old, new), rng)
    with pytest.raises(ModelError, match=message):
        open_onnx(path, ExportOptions(value_range=(-1.0, 1.0)))


def test_onnx_latent_that_does_not_exist_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match="no input 'code'; its inputs are: noise"):
        open_onnx(_write(tmp_path, FLAT, rng), ExportOptions(latent_input="code"))


def test_onnx_image_is_chosen_among_outputs(tmp_path: Path, rng: np.random.Generator) -> None:
    text = FLAT.replace(
        "(float[N, 1, 8, 8] picture)", "(float[N, 64] product, float[N, 1, 8, 8] picture)"
    )
    path = _write(tmp_path, text, rng)
    with pytest.raises(ConfigError, match="product, picture"):
        open_onnx(path, ExportOptions())
    assert open_onnx(path, ExportOptions(image_output="picture")).channels == 1
    with pytest.raises(ConfigError, match="no output 'photo'; its outputs are: product, picture"):
        open_onnx(path, ExportOptions(image_output="photo"))


@pytest.mark.parametrize("cut", [0, 40])
def test_damaged_onnx_file_is_named(tmp_path: Path, rng: np.random.Generator, cut: int) -> None:
    path = _write(tmp_path, FLAT, rng)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"generator\.onnx is no valid ONNX model"):
        open_onnx(path, ExportOptions())


def test_missing_onnx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx does not exist"):
        plan(tmp_path / "none.onnx", ExportOptions())


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from unblemish.export.build import build_bundle
from unblemish.export.options import ExportOptions
options = ExportOptions(finetune=True)
bundle = build_bundle(Path(sys.argv[1]), Path(sys.argv[2]), options=options)
assert "torch" not in sys.modules
print(bundle.manifest.parity["gradient_differences"])
"""


def test_onnx_generator_is_exported_and_checked_without_torch(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _write(tmp_path, FLAT, rng)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path), str(tmp_path / "part.bundle")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A smooth generator: central differences of step 0.01 are right to a few per mille.
    assert 0 < float(done.stdout) < 1e-2


def test_keep_batch_leaves_reshapes_that_mix_the_batch(rng: np.random.Generator) -> None:
    text = FLAT.replace("{-1, 1, 8, 8}", "{-1, 2, 8, 8}")
    model = keep_batch(_model(text, rng))
    (reshape,) = [node for node in model.graph.node if node.op_type == "Reshape"]
    assert reshape.input[1] == "target"


def test_keep_batch_makes_the_batch_known_behind_a_reshape(rng: np.random.Generator) -> None:
    model = keep_batch(_model(FLAT, rng))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    square = next(v for v in inferred.graph.value_info if v.name == "square")
    dims = square.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 1, 8, 8]
