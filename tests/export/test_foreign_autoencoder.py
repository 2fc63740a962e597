"""Generators with their encoders, and ONNX autoencoders, as bundles of energy projection."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import parser

from unblemish.bundle import Bundle
from unblemish.cli import main
from unblemish.errors import ConfigError, ModelError
from unblemish.export.build import build_bundle, plan
from unblemish.export.energy_plan import EnergyPlan
from unblemish.export.models.burgess import BurgessVae
from unblemish.export.models.checkpoint import load_model
from unblemish.export.options import ExportOptions
from unblemish.runtime.inspector import Inspector

ENERGY = ExportOptions(method="energy")
# As they come: a batch of one, a name that clashes with ours, tanh.
AUTOENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
autoencoder (float[1, 1, 8, 12] x) => (float[1, 1, 8, 12] image)
<int64[2] flat = {1, 96}, int64[4] target = {1, 1, 8, 12}>
{
   line = Reshape(x, flat)
   code = MatMul(line, we)
   drawn = MatMul(code, wd)
   square = Reshape(drawn, target)
   image = Tanh(square)
}
"""


def _write(path: Path, text: str = AUTOENCODER) -> Path:
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in (("we", (96, 5)), ("wd", (5, 96))):
        values = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, str(path))
    return path


def _weights(path: Path) -> dict[str, NDArray[np.float32]]:
    held = onnx.load(str(path)).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in held}


def _searched(bundle: Bundle, frame: NDArray[np.float32]) -> NDArray[np.float32]:
    with Inspector.open(bundle, refine="none") as inspector:
        return np.asarray(inspector.search(frame).restored)


def test_a_burgess_vae_becomes_an_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = BurgessVae(channels=3, latent=4, width=3, hidden=5)
    torch.save(network.state_dict(), tmp_path / "face.pt")
    bundle = build_bundle(tmp_path / "face.pt", tmp_path / "face.bundle", options=ENERGY)
    manifest = bundle.manifest
    assert (manifest.method, manifest.model.kind, manifest.model.latent_size) == (
        "energy",
        "vae",
        4,
    )
    assert manifest.energy is not None
    assert (manifest.energy.loss, manifest.energy.lam, manifest.energy.alpha) == ("l2", 0.05, 0.5)
    outputs = [t.name for t in manifest.graphs["reconstruct"].outputs]
    assert outputs == ["reconstruction", "mean", "log_variance"]
    assert manifest.parity["gradient_pair"] < 1e-4
    image = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image.transpose(2, 0, 1)[None]))[0].numpy()
    np.testing.assert_allclose(_searched(bundle, image), expected.transpose(1, 2, 0), atol=1e-5)


def test_a_generator_in_minus_one_to_one_keeps_what_lambda_and_step_do(
    tmp_path: Path, vae_checkpoint: Path
) -> None:
    bundle = build_bundle(vae_checkpoint, tmp_path / "part.bundle", options=ENERGY)
    manifest = bundle.manifest
    assert (manifest.preprocess.low, manifest.preprocess.high) == (-1.0, 1.0)
    assert manifest.energy is not None
    # Twice the range: the threshold lam / 2 doubles, the tuned step is cubed and should double.
    assert (manifest.energy.lam, manifest.energy.alpha) == (0.1, 0.125)
    model = load_model(vae_checkpoint)
    image = np.random.default_rng(1).random((16, 16)).astype(np.float32)
    with torch.no_grad():
        code = model.encoder(torch.from_numpy(2 * image[None, None] - 1))  # type: ignore[misc]
        made = model.generator(code)[0, 0].numpy()
    np.testing.assert_allclose(_searched(bundle, image), np.clip((made + 1) / 2, 0, 1), atol=1e-4)


def test_a_generator_without_encoder_is_refused(pggan_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="without an encoder"):
        plan(pggan_checkpoint, ENERGY)


def test_an_onnx_autoencoder_is_exported_as_it_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "part.onnx")
    bundle = build_bundle(path, tmp_path / "part.bundle")
    manifest, held = bundle.manifest, _weights(path)
    assert (manifest.method, manifest.model.kind) == ("energy", "onnx")
    p = manifest.preprocess
    assert (p.width, p.height, p.channels, p.low, p.high) == (12, 8, 1, -1.0, 1.0)
    assert manifest.graphs["reconstruct"].inputs[0].shape == ("batch", 1, 8, 12)
    assert manifest.parity["image_reconstruct"] < 1e-6  # against the file itself, one by one
    assert manifest.parity["gradient_pair"] < 1e-5
    image = np.random.default_rng(2).random((8, 12)).astype(np.float32)
    made = np.tanh((2 * image - 1).reshape(-1) @ held["we"] @ held["wd"]).reshape(8, 12)
    np.testing.assert_allclose(_searched(bundle, image), (made + 1) / 2, atol=1e-5)


def test_the_gradient_of_an_onnx_autoencoder_is_that_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "part.onnx")
    held, made = _weights(path), plan(path, ExportOptions())
    assert isinstance(made, EnergyPlan)
    rng = np.random.default_rng(3)
    image, cotangent = rng.standard_normal((2, 3, 1, 8, 12)).astype(np.float32)
    import onnxruntime

    session = onnxruntime.InferenceSession(made.fused.SerializeToString())
    fed = {"image": image, "ct_reconstruction": cotangent}
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, fed), strict=True))["grad_image"]
    drawn = image.reshape(3, -1) @ held["we"] @ held["wd"]
    pulled = cotangent.reshape(3, -1) * (1 - np.tanh(drawn) ** 2)
    expected = pulled @ held["wd"].T @ held["we"].T
    np.testing.assert_allclose(found.reshape(3, -1), expected, atol=1e-4)


def test_an_onnx_autoencoder_needs_no_torch(tmp_path: Path) -> None:
    path, out = _write(tmp_path / "part.onnx"), tmp_path / "part.bundle"
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\nfrom unblemish.export.build import build_bundle\n"
        f"made = build_bundle(Path({str(path)!r}), Path({str(out)!r}))\n"
        "print(made.manifest.parity['gradient_differences'] < 0.01)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_one_of_several_outputs_is_named(tmp_path: Path) -> None:
    text = AUTOENCODER.replace("(float[1, 1, 8, 12] image)", "(float[1, 1, 8, 12] image, "
                               "float[1, 5] code)")  # fmt: skip
    path = _write(tmp_path / "part.onnx", text)
    with pytest.raises(ConfigError, match="image, code"):
        plan(path, ExportOptions())
    assert isinstance(plan(path, ExportOptions(image_output="image")), EnergyPlan)


def test_what_is_no_autoencoder_or_gets_foreign_options_is_refused(tmp_path: Path) -> None:
    other = AUTOENCODER.replace("{1, 1, 8, 12}", "{1, 1, 12, 8}").replace(
        "(float[1, 1, 8, 12] image)", "(float[1, 1, 12, 8] image)"
    )
    with pytest.raises(ModelError, match="is no autoencoder"):
        plan(_write(tmp_path / "turned.onnx", other), ENERGY)
    path = _write(tmp_path / "part.onnx")
    with pytest.raises(ConfigError, match="no use for --finetune"):
        plan(path, ExportOptions(finetune=True))
    with pytest.raises(ConfigError, match="--latent needs"):
        plan(path, ExportOptions(latent=True))
    with pytest.raises(ConfigError, match=r"--range=-1,1"):
        plan(_write(tmp_path / "a.onnx", AUTOENCODER.replace("Tanh", "Softplus")), ENERGY)


def test_methods_that_do_not_fit_are_refused(
    tmp_path: Path, vae_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="method must be one of rgi, energy"):
        ExportOptions(method="gan")
    with pytest.raises(ConfigError, match="--latent needs"):
        plan(vae_checkpoint, ExportOptions(method="energy", latent=True))
    out = str(tmp_path / "part.bundle")
    arguments = ["export", str(vae_checkpoint), "--method", "energy", "--out", out]
    assert main([*arguments, "--discriminator"]) == 2
    assert "no use for --discriminator" in capsys.readouterr().err
    assert main(arguments) == 0
