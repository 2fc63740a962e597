"""Bundles of autoencoders: that they compute the model, and what their manifest says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.searches import EnergySettings
from unblemish.cli import main
from unblemish.errors import ConfigError, ModelError
from unblemish.export.build import build_bundle, plan, write_plan
from unblemish.export.models.autoencoder import Autoencoder, AutoencoderSettings, Projector
from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
from unblemish.export.options import ExportOptions
from unblemish.export.plan import files_of

# float32 in engines against float32 in torch, networks of a few layers.
RMSE = 0.02  # of held-back images
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
KINDS = [
    ("l2ae", "none", "l2ae", "l2", None, "conv"),
    ("dsae", "none", "dsae", "dssim", None, "conv"),
    ("ae-vae", "unit", "vae", "l2", None, "conv"),
    ("gamma-vae", "global", "gamma-vae", "gaussian", np.exp(-2.0), "conv"),
    ("gamma-vae", "pixel", "gamma-vae", "gaussian", None, "conv"),
    ("gamma-vae", "global", "gamma-vae", "gaussian", np.exp(-2.0), "resnet"),
    ("gamma-vae", "pixel", "gamma-vae", "gaussian", None, "resnet"),
]


def _network(settings: AutoencoderSettings) -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(settings).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def _save(
    path: Path, kind: str, variance: Any, linear: int = 16, network: Any = "conv", **fields: Any
) -> Autoencoder:
    channels = 3 if network == "resnet" else 1
    network = _network(AutoencoderSettings(32, channels, 5, 4, variance, linear, network))
    if variance == "global":
        network.log_gamma.fill_(-2.0)
    save_checkpoint(
        path, Checkpoint(kind, settings_of(network.settings), network.state_dict(), **fields)
    )
    return network


@pytest.fixture(scope="module")
def _plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("l2ae") / "part.pt"
    _save(path, "l2ae", "none", 0, losses=[[0.0, 1.0], [0.5, 3.0], [1.0, 7.0]])
    return path, plan(path, ExportOptions())


@pytest.fixture
def energy_plan(_plan: tuple[Path, Any]) -> tuple[Path, Any]:
    """Checkpoint and plan of an l2ae, to be changed at will."""
    return copy.deepcopy(_plan)


def _run(path: Path, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    values = session.run(None, {name: feeds[name] for name in names})
    return {o.name: v for o, v in zip(session.get_outputs(), values, strict=True)}


@pytest.mark.parametrize(("kind", "variance", "model", "loss", "gamma", "shape"), KINDS)
def test_bundle_computes_reconstructions_and_gradients(
    tmp_path: Path, rng: np.random.Generator, kind: str, variance: str, model: str, loss: str,
    gamma: float | None, shape: str,
) -> None:  # fmt: skip
    trained = {"geometry": "tiles", "scale": 0.5}
    typical = np.exp(-1.5) if variance == "pixel" else None
    figures = {"held_back_rmse": RMSE}
    if typical is not None:
        figures["decoder_scale"] = float(typical)
    network = _save(
        tmp_path / "part.pt", kind, variance, network=shape, preprocess=trained, figures=figures
    )
    bundle = build_bundle(tmp_path / "part.pt", tmp_path / "part.bundle")
    projector = Projector(network)
    image = rng.random((3, network.settings.channels, 32, 32)).astype(np.float32)
    leaf = torch.from_numpy(image).requires_grad_()
    values = projector(leaf)
    cotangents = [rng.standard_normal(v.shape).astype(np.float32) for v in values]
    (expected,) = torch.autograd.grad(values, leaf, [torch.from_numpy(c) for c in cotangents])

    feeds = {f"ct_{n}": c for n, c in zip(projector.outputs, cotangents, strict=True)}
    plain = _run(bundle.graph("reconstruct"), {"image": image})
    there = _run(bundle.graph("reconstruct_forward"), {"image": image})
    back = _run(bundle.graph("reconstruct_backward"), {"image": image, **there, **feeds})
    for name, value in zip(projector.outputs, values, strict=True):
        np.testing.assert_allclose(plain[name], value.detach().numpy(), **CLOSE)
        np.testing.assert_allclose(there[name], value.detach().numpy(), **CLOSE)
    np.testing.assert_allclose(back["grad_image"], expected.numpy(), **CLOSE)
    manifest = bundle.manifest
    energy, images = manifest.energy, manifest.preprocess
    assert energy is not None
    assert (manifest.method, manifest.model.kind, energy.loss) == ("energy", model, loss)
    assert energy.gamma == (None if gamma is None else pytest.approx(gamma))
    assert energy.typical_gamma == (None if typical is None else pytest.approx(typical))
    assert energy.step == "tuned"
    # What the squared error is divided by, so is the distance, and the step multiplied.
    known = gamma or typical
    flatter = 1.0 if known is None else 2 * known**2
    assert energy.precision == pytest.approx(1 / flatter)
    assert energy.lam == pytest.approx((0.05 + 2 * RMSE) / flatter)
    assert energy.alpha == pytest.approx(0.5 * flatter)
    assert (images.low, images.high, images.geometry, images.scale) == (0.0, 1.0, "tiles", 0.5)


def test_every_graph_has_a_symbolic_batch_standard_operators_and_roles(
    energy_plan: tuple[Path, Any], tmp_path: Path
) -> None:
    path, made = energy_plan
    bundle = write_plan(made, path, tmp_path / "part.bundle", ExportOptions())
    for role, graph in bundle.manifest.graphs.items():
        model = onnx.load(str(bundle.graph(role)))
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        for tensor in (*graph.inputs, *graph.outputs):
            assert tensor.shape[0] == "batch" or tensor.role == "kept", (role, tensor)
    roles = {t.name: t.role for g in bundle.manifest.graphs.values() for t in g.outputs}
    assert (roles["reconstruction"], roles["grad_image"]) == ("reconstruction", "gradient")


def test_parity_refuses_a_gradient_that_strays(
    energy_plan: tuple[Path, Any], tmp_path: Path
) -> None:
    path, made = energy_plan
    for tensor in made.graphs["reconstruct_backward"].graph.initializer:
        if tensor.data_type == 1 and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match="gradient_pair differs from its reference"):
        write_plan(made, path, tmp_path / "part.bundle", ExportOptions())
    assert not (tmp_path / "part.bundle").exists()


@pytest.mark.parametrize("role", ["reconstruct", "reconstruct_forward"])
def test_parity_refuses_a_reconstruction_that_strays(
    energy_plan: tuple[Path, Any], tmp_path: Path, role: str
) -> None:
    path, made = energy_plan
    for tensor in made.graphs[role].graph.initializer:
        if tensor.data_type == 1 and len(tensor.dims) == 1:
            values = onnx.numpy_helper.to_array(tensor) + np.float32(0.05)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match="export refused: image_"):
        write_plan(made, path, tmp_path / "part.bundle", ExportOptions())


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"discriminator": True}, "--discriminator"), ({"finetune": True}, "--finetune"),
     ({"value_range": (0.0, 1.0)}, "--range")],
)  # fmt: skip
def test_options_of_generators_are_refused(
    energy_plan: tuple[Path, Any], changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(ConfigError, match=f"no use for {option}"):
        plan(energy_plan[0], ExportOptions(**changes))


def test_decoder_and_encoder_apart_make_up_the_reconstruction(
    energy_plan: tuple[Path, Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    out = tmp_path / "part.bundle"
    bundle = build_bundle(energy_plan[0], out, options=ExportOptions(latent=True))
    image = rng.random((2, 1, 32, 32)).astype(np.float32)
    code = _run(bundle.graph("encoder"), {"image": image})["z"]
    drawn = _run(bundle.graph("generator"), {"z": code})["image"]
    whole = _run(bundle.graph("reconstruct"), {"image": image})["reconstruction"]
    np.testing.assert_allclose(drawn, whole, **CLOSE)
    assert {"latent_gradient_pair", "gradient_pair"} <= bundle.manifest.parity.keys()
    # They stand on the weights of the whole.
    weights = [w.bytes for n, w in bundle.manifest.files.items() if n.endswith("weights.bin")]
    plain = {n: len(c) for n, c in files_of(energy_plan[1]).items()}
    assert sum(weights) < 1.05 * plain["graphs/weights.bin"]


def test_generator_has_no_latent_part(vae_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"no autoencoder. Leave out --latent"):
        plan(vae_checkpoint, ExportOptions(latent=True))


@pytest.mark.parametrize(
    ("shape", "channels", "linear"),
    [("conv", 1, 64), ("conv", 3, 32), ("resnet", 3, 32)],
)
def test_largest_usual_bundle_keeps_within_ten_megabytes(
    tmp_path: Path, shape: Any, channels: int, linear: int
) -> None:
    network = Autoencoder(AutoencoderSettings(128, channels, 100, 32, "pixel", linear, shape))
    path = tmp_path / "part.pt"
    settings = settings_of(network.settings)
    save_checkpoint(path, Checkpoint("gamma-vae", settings, network.state_dict()))
    files = files_of(plan(path, ExportOptions()))
    assert sum(map(len, files.values())) < 10e6
    # The weights stand there once: 4 bytes each, beside the graphs.
    weights = 4 * sum(p.numel() for p in network.parameters())
    assert len(files["graphs/weights.bin"]) < 1.02 * weights


def test_export_and_show_from_the_command_line(
    energy_plan: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "part.bundle")
    assert main(["export", str(energy_plan[0]), "--out", out]) == 0
    assert "reconstruct_backward" in capsys.readouterr().out
    assert main(["show", out]) == 0
    assert "energy: l2, lambda 0.05" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("quantile", "loss"), [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.75, 5.0), (1.0, 7.0)]
)
def test_stop_loss_is_the_quantile_of_the_training_losses(quantile: float, loss: float) -> None:
    known = ((0.0, 1.0), (0.5, 3.0), (1.0, 7.0))
    assert EnergySettings(stop_quantile=quantile, training_losses=known).stop_loss == loss
    assert EnergySettings(stop_quantile=quantile).stop_loss is None


def test_settings_can_be_changed_in_memory(
    energy_plan: tuple[Path, Any], vae_bundle: Path, tmp_path: Path
) -> None:
    path, made = energy_plan
    bundle = write_plan(made, path, tmp_path / "energy.bundle", ExportOptions())
    changed = bundle.with_energy(lam=0.1, step="plain").manifest.energy
    assert changed is not None
    assert (changed.lam, changed.step, changed.stop_loss) == (0.1, "plain", 1.0)
    with pytest.raises(ConfigError, match="setting 'alpha'"):
        bundle.with_energy(alpha=-1)
    with pytest.raises(ConfigError, match="method 'rgi', which has no energy"):
        Bundle.open(vae_bundle).with_energy(lam=0.1)
