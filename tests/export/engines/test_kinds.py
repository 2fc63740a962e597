"""Every kind of model that can be exported, gradients included, against TensorRT's operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from unblemish.cli import main
from unblemish.errors import UnsupportedOperatorError
from unblemish.export.build import build_bundle, write_plan
from unblemish.export.models.autoencoder import Autoencoder, AutoencoderSettings
from unblemish.export.models.burgess import BurgessVae
from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
from unblemish.export.models.pca import Pca, PcaSettings
from unblemish.export.options import ExportOptions

TENSORRT = ExportOptions(target="tensorrt")


def autoencoder(path: Path, kind: str, variance: Any) -> Path:
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderSettings(32, 1, 5, 4, variance, 16))
    settings = settings_of(network.settings)
    save_checkpoint(path, Checkpoint(kind, settings, network.state_dict()))
    return path


def pca(path: Path) -> Path:
    settings = PcaSettings(12, 3, 5)
    save_checkpoint(path, Checkpoint("pca", settings_of(settings), Pca(settings).state_dict()))
    return path


def burgess(path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(BurgessVae(3, 4, width=3, hidden=5).state_dict(), path)
    return path


@pytest.mark.parametrize("make", [pca, burgess])
def test_generators_are_taken(make: Any, tmp_path: Path) -> None:
    build_bundle(make(tmp_path / "part.pt"), tmp_path / "part.bundle", options=TENSORRT)


def test_vae_is_taken(vae_plan: Any, vae_checkpoint: Path, tmp_path: Path) -> None:
    write_plan(vae_plan, vae_checkpoint, tmp_path / "part.bundle", TENSORRT)


def test_pggan_with_discriminator_and_free_weights_is_taken(
    pggan_plan: Any, tmp_path: Path
) -> None:
    path, made = pggan_plan
    write_plan(made, path, tmp_path / "part.bundle", TENSORRT)


@pytest.mark.parametrize(
    ("kind", "variance"),
    [
        ("gamma-vae", "pixel"),
        pytest.param("l2ae", "none", marks=pytest.mark.slow),
        pytest.param("dsae", "none", marks=pytest.mark.slow),
        pytest.param("ae-vae", "unit", marks=pytest.mark.slow),
        pytest.param("gamma-vae", "global", marks=pytest.mark.slow),
    ],
)
def test_autoencoders_are_taken(kind: str, variance: str, tmp_path: Path) -> None:
    path = autoencoder(tmp_path / "part.pt", kind, variance)
    build_bundle(path, tmp_path / "part.bundle", options=ExportOptions(target="tensorrt"))


def test_refused_operator_fails_the_export_and_writes_nothing(
    vae_plan: Any, vae_checkpoint: Path, tmp_path: Path
) -> None:
    encoder = vae_plan.graphs["encoder"]
    (name,) = [value.name for value in encoder.graph.output]
    for node in encoder.graph.node:
        node.output[:] = ["plain" if o == name else o for o in node.output]
    encoder.graph.node.append(
        onnx.helper.make_node("Bernoulli", ["plain"], [name], name="dice", seed=0.0)
    )
    with pytest.raises(UnsupportedOperatorError, match=r"Bernoulli 'dice'.*not supported"):
        _check_plan(vae_plan, vae_checkpoint)


def _check_plan(made: Any, source: Path) -> None:
    from unblemish.export.engines.prepare import check_files
    from unblemish.export.plan import files_of, manifest_of
    from unblemish.export.sharing.shared_files import written

    files = files_of(made)
    manifest = manifest_of(made, source, "0" * 64, "part", TENSORRT, {})
    with written(files) as folder:
        check_files(folder, files, manifest)


def test_target_of_the_command_line(
    vae_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.bundle"
    arguments = ["export", str(vae_checkpoint), "--out", str(out), "--target"]
    assert main([*arguments, "tpu"]) == 2
    assert "target must be one of tensorrt" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "tensorrt"]) == 0
    told = capsys.readouterr()
    assert "no engines yet" in told.err
    assert f"unblemish build-engines {out}" in told.out
