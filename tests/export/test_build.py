"""Bundles from checkpoints: that they compute the model, and when nothing is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Preprocess
from unblemish.cli import main
from unblemish.errors import BundleError, ConfigError, ModelError
from unblemish.export.build import build_bundle, plan, write_plan
from unblemish.export.models.checkpoint import load_model
from unblemish.export.options import ExportOptions

# float32 in engines against float64 in torch, networks of a few layers.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def _run(path: Path, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    values = session.run(None, {name: feeds[name] for name in names})
    return {o.name: v for o, v in zip(session.get_outputs(), values, strict=True)}


def _pair(bundle: Bundle, stem: str, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    there = _run(bundle.graph(f"{stem}_forward"), feeds)  # type: ignore[arg-type]
    return {**there, **_run(bundle.graph(f"{stem}_backward"), {**feeds, **there})}  # type: ignore[arg-type]


def test_bundle_of_a_vae_computes_images_gradients_and_codes(
    vae_checkpoint: Path, vae_bundle: Path, rng: np.random.Generator
) -> None:
    import torch

    bundle = Bundle.open(vae_bundle)
    model = load_model(vae_checkpoint)
    z = rng.standard_normal((3, 6)).astype(np.float32)
    c = rng.standard_normal((3, 1, 16, 16)).astype(np.float32)
    leaf = torch.from_numpy(z).requires_grad_()
    image = model.generator(leaf)
    (expected,) = torch.autograd.grad((image * torch.from_numpy(c)).sum(), leaf)

    values = _pair(bundle, "generator", {"z": z, "ct_image": c})
    np.testing.assert_allclose(values["image"], image.detach().numpy(), **CLOSE)
    np.testing.assert_allclose(values["grad_z"], expected.numpy(), **CLOSE)
    assert model.encoder is not None
    code = _run(bundle.graph("encoder"), {"image": c})["z"]
    np.testing.assert_allclose(code, model.encoder(torch.from_numpy(c)).numpy(), **CLOSE)
    assert bundle.manifest.rgi.start == "encoder"
    assert bundle.manifest.model.source == "vae.pt"


def test_bundle_of_a_pca_is_one_matrix_each_way(tmp_path: Path) -> None:
    import torch

    from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
    from unblemish.export.models.pca import Pca, PcaSettings

    torch.manual_seed(0)
    settings = PcaSettings(12, 3, 5)
    state = Pca(settings).state_dict()
    save_checkpoint(tmp_path / "pca.pt", Checkpoint("pca", settings_of(settings), state))
    manifest = build_bundle(tmp_path / "pca.pt", tmp_path / "part.bundle").manifest
    assert (manifest.model.kind, manifest.model.latent_size) == ("pca", 5)
    assert manifest.graphs["generator_forward"].flops == 2 * 5 * 3 * 12 * 12
    assert manifest.graphs["generator_backward"].flops == 2 * 5 * 3 * 12 * 12
    assert manifest.rgi.start == "encoder"


def test_bundle_of_a_pggan_has_the_penalty_and_the_free_weights(
    pggan_plan: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    path, made = pggan_plan
    bundle = write_plan(made, path, tmp_path / "part.bundle", ExportOptions())
    manifest = bundle.manifest
    assert {"gradient_weights", "discriminator_gradient"} <= manifest.parity.keys()
    assert manifest.rgi.discriminator_weight == 0.1
    assert manifest.finetune_weights is not None
    with np.load(bundle.file(manifest.finetune_weights)) as stored:
        weights = dict(stored)
    named = {t.name for t in manifest.graphs["finetune_forward"].inputs if t.role == "weight"}
    assert named == weights.keys()
    # The weights are free: twice the last layer's weights and biases are twice the image.
    z = rng.standard_normal((2, 6)).astype(np.float32)
    last = [name for name in weights if name.startswith("toRGBLayers")]
    assert len(last) == 2
    once = _run(bundle.graph("finetune_forward"), {"z": z, **weights})["image"]
    doubled = {n: 2 * w if n in last else w for n, w in weights.items()}
    twice = _run(bundle.graph("finetune_forward"), {"z": z, **doubled})["image"]
    np.testing.assert_allclose(twice, 2 * once, **CLOSE)


def test_trainable_form_keeps_the_constants_apart(pggan_plan: Any) -> None:
    import torch

    path, made = pggan_plan
    state = torch.load(path, weights_only=True)["weights"]
    assert "groupScale0.0.module.weight" in made.weights
    for name, value in made.weights.items():
        np.testing.assert_array_equal(value, state[name].numpy())


def test_every_graph_has_a_symbolic_batch_and_standard_operators(
    pggan_plan: Any, tmp_path: Path
) -> None:
    path, made = pggan_plan
    bundle = write_plan(made, path, tmp_path / "part.bundle", ExportOptions())
    for role, graph in bundle.manifest.graphs.items():
        model = onnx.load(str(bundle.graph(role)))
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        for tensor in graph.inputs:
            if tensor.role in ("latent", "image", "cotangent"):
                assert tensor.shape[0] == "batch", (role, tensor)


def test_no_graph_asks_for_shapes_at_run_time(vae_plan: Any) -> None:
    for role in ("generator_forward", "generator_backward"):
        operators = {node.op_type for node in vae_plan.graphs[role].graph.node}
        assert not operators & {"NonZero", "Shape", "Equal"}, role


def test_parity_refuses_a_graph_that_strays(
    vae_plan: Any, vae_checkpoint: Path, tmp_path: Path
) -> None:
    weights = vae_plan.graphs["generator_backward"].graph.initializer
    large = max(weights, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(large) * np.float32(1.01)
    large.CopyFrom(onnx.numpy_helper.from_array(values, large.name))
    with pytest.raises(ModelError, match=r"gradient_pair differs from its reference by 0\.\d+"):
        write_plan(vae_plan, vae_checkpoint, tmp_path / "part.bundle", ExportOptions())
    assert not (tmp_path / "part.bundle").exists()


@pytest.mark.parametrize("role", ["generator", "generator_forward", "encoder"])
def test_parity_looks_at_every_graph(
    vae_plan: Any, vae_checkpoint: Path, tmp_path: Path, role: str
) -> None:
    biases = [
        t for t in vae_plan.graphs[role].graph.initializer if t.data_type == 1 and len(t.dims)
    ]
    for tensor in biases:
        values = onnx.numpy_helper.to_array(tensor) + np.float32(0.05)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match="export refused"):
        write_plan(vae_plan, vae_checkpoint, tmp_path / "part.bundle", ExportOptions())


def test_parity_refuses_nan(vae_plan: Any, vae_checkpoint: Path, tmp_path: Path) -> None:
    tensor = next(t for t in vae_plan.graphs["generator"].graph.initializer if len(t.dims) == 4)
    nan = np.full(list(tensor.dims), np.nan, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(nan, tensor.name))
    with pytest.raises(ModelError, match="by nan"):
        write_plan(vae_plan, vae_checkpoint, tmp_path / "part.bundle", ExportOptions())


def test_geometry_of_training_is_that_of_the_bundle_unless_stated(
    vae_plan: Any, vae_checkpoint: Path, tmp_path: Path
) -> None:
    trained = {"geometry": "tiles", "scale": 0.5, "overlap": 0.1, "width": 16, "height": 16}
    vae_plan.source.preprocess.update(trained)

    def exported(options: ExportOptions) -> Preprocess:
        return write_plan(
            vae_plan, vae_checkpoint, tmp_path / "a.bundle", options
        ).manifest.preprocess

    as_trained, other = exported(ExportOptions()), exported(ExportOptions(geometry="letterbox"))
    assert (as_trained.geometry, as_trained.scale, as_trained.overlap) == ("tiles", 0.5, 0.1)
    assert other.geometry == "letterbox"


def test_discriminator_is_missed_where_there_is_none(vae_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no discriminator"):
        plan(vae_checkpoint, ExportOptions(discriminator=True))


def test_encoder_can_be_left_out(vae_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(encoder=False)
    bundle = build_bundle(vae_checkpoint, tmp_path / "part.bundle", options=options)
    assert "encoder" not in bundle.manifest.graphs
    assert bundle.manifest.rgi.start == "random"


def test_dry_run_prints_and_writes_nothing(
    vae_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "part.bundle"
    assert main(["export", str(vae_checkpoint), "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "generator_backward" in said
    assert "MFLOP" in said
    assert "nothing was written" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_export_and_show_from_the_command_line(
    vae_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.bundle"
    assert main(["export", str(vae_checkpoint), "--out", str(out), "--name", "plate"]) == 0
    assert "parity: image_generator" in capsys.readouterr().out
    assert main(["show", str(out)]) == 0
    assert "plate" in capsys.readouterr().out
    assert main(["show", str(out), "--json"]) == 0
    import json

    assert json.loads(capsys.readouterr().out)["name"] == "plate"


def test_show_finds_a_changed_file(vae_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Bundle.open(vae_bundle).graph("encoder")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))
    assert main(["show", str(vae_bundle)]) == 2
    assert "encoder.onnx' differs" in capsys.readouterr().err


def test_export_leaves_a_folder_that_is_no_bundle_alone(
    vae_plan: Any, vae_checkpoint: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "one.txt").write_text("mine")
    with pytest.raises(BundleError, match="is no bundle"):
        write_plan(vae_plan, vae_checkpoint, precious, ExportOptions())
    assert (precious / "one.txt").read_text() == "mine"


def test_full_disk_leaves_the_old_bundle(
    vae_plan: Any, vae_checkpoint: Path, vae_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        write_plan(vae_plan, vae_checkpoint, vae_bundle, ExportOptions(name="new"))
    monkeypatch.undo()
    assert Bundle.open(vae_bundle).manifest.name == "part"
    assert [p.name for p in vae_bundle.parent.iterdir() if p.name.startswith(".part")] == []


@pytest.mark.parametrize("text", ["", "1", "a,b", "1,-1", "nan,1", "0,inf"])
def test_range_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "none.onnx", "--out", "x.bundle", f"--range={text}"]) == 2
    assert "LOW,HIGH" in capsys.readouterr().err


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from unblemish.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def without() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process where some packages cannot be imported."""

    def run(blocked: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BLOCKED.format(blocked=blocked), *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "train"), ("onnx", "onnx"), ("onnxscript", "train")]
)
def test_missing_package_is_named_with_its_extra(
    vae_checkpoint: Path, tmp_path: Path, without: Callable[..., Any], package: str, extra: str
) -> None:
    done = without({package}, "export", str(vae_checkpoint), "--out", str(tmp_path / "x.bundle"))
    assert done.returncode == 2, done.stderr
    assert f"'{package}'" in done.stderr
    assert f"unblemish[{extra}]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_show_needs_neither_torch_nor_onnx(vae_bundle: Path, without: Callable[..., Any]) -> None:
    done = without({"torch", "onnx", "matplotlib"}, "show", str(vae_bundle))
    assert done.returncode == 0, done.stderr
    assert "latent 6" in done.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"geometry": "round"}, "stretch, letterbox, tiles; found 'round'"),
        ({"scale": -1.0}, "scale must be a positive number; found -1"),
        ({"scale": float("nan")}, "scale must be a positive number"),
        ({"overlap": 2.0}, "overlap must lie in"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        ExportOptions(**settings)


@pytest.mark.parametrize(
    "settings", [{"latent_input": "z"}, {"image_output": "x"}, {"value_range": (-1.0, 1.0)}]
)
def test_options_of_onnx_files_are_refused_with_a_checkpoint(
    vae_checkpoint: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"is no \.onnx file"):
        plan(vae_checkpoint, ExportOptions(**settings))


def test_bundle_keeps_the_white_of_training(vae_checkpoint: Path) -> None:
    from dataclasses import replace

    from unblemish.export.plan import manifest_of

    made = plan(vae_checkpoint, ExportOptions())
    trained = replace(made, source=replace(made.source, preprocess={"white": 4095.0}))
    manifest = manifest_of(trained, vae_checkpoint, "0" * 64, "part", ExportOptions(), {})
    assert Preprocess.model_validate(manifest["preprocess"]).white == 4095.0
