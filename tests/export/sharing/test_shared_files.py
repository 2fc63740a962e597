"""Bundles whose graphs share one file of weights: vouched for, and read by every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from unblemish.bundle import Bundle, update_bundle
from unblemish.cli import main
from unblemish.errors import BundleError
from unblemish.export.build import build_bundle, write_plan
from unblemish.export.options import ExportOptions
from unblemish.export.plan import files_of
from unblemish.export.sharing.shared_files import shared_files, written
from unblemish.onnx_files import read_onnx
from unblemish.runtime.backends import open_backend

WEIGHTS = "graphs/weights.bin"
ROLES = ("generator_forward", "generator_backward")
# float32 in engines that sum in different orders, networks of a few layers.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def test_every_weight_of_a_bundle_stands_there_once(vae_bundle: Path) -> None:
    bundle = Bundle.open(vae_bundle)
    large = {
        tensor.raw_data
        for role in bundle.manifest.graphs
        for tensor in read_onnx(bundle.graph(role)).graph.initializer
        if len(tensor.raw_data) >= 4096
    }
    padding = 64 * len(large)
    assert large
    assert bundle.manifest.files[WEIGHTS].bytes <= sum(map(len, large)) + padding
    for role in bundle.manifest.graphs:
        assert bundle.graph(role).stat().st_size < 32_000  # nodes and small tensors


def test_a_bundle_of_a_fitted_pca_holds_its_basis_once(tmp_path: Path) -> None:
    import torch

    from unblemish.calibration.training.ppca import fit_maps
    from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
    from unblemish.export.models.pca import Pca, PcaSettings

    settings = PcaSettings(16, 1, 6)
    pca = Pca(settings)
    samples = torch.randn(40, 256, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    fit_maps(pca.encoder.linear, pca.decoder.linear, samples)
    state = pca.state_dict()
    save_checkpoint(tmp_path / "pca.pt", Checkpoint("pca", settings_of(settings), state))
    bundle = build_bundle(tmp_path / "pca.pt", tmp_path / "part.bundle")
    assert len(bundle.manifest.graphs) == 4
    assert bundle.manifest.files[WEIGHTS].bytes == 4 * 6 * 256


def test_a_bundle_without_its_weights_is_refused(vae_bundle: Path) -> None:
    (vae_bundle / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"'graphs/weights\.bin' is missing"):
        Bundle.open(vae_bundle)


def test_a_bundle_with_changed_weights_is_refused(vae_bundle: Path) -> None:
    content = bytearray((vae_bundle / WEIGHTS).read_bytes())
    content[100] ^= 1
    (vae_bundle / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"'graphs/weights\.bin' differs from the manifest"):
        Bundle.open(vae_bundle)


def test_the_weights_survive_an_update_of_the_bundle(vae_bundle: Path) -> None:
    before = (vae_bundle / WEIGHTS).read_bytes()
    update_bundle(Bundle.open(vae_bundle), files={"notes.txt": b"new"})
    Bundle.open(vae_bundle).verify()
    assert (vae_bundle / WEIGHTS).read_bytes() == before


def _step(engine: str, bundle: Path, rng: np.random.Generator) -> list[Any]:
    opened = Bundle.open(bundle)
    forward, backward = (str(opened.graph(role)) for role in ROLES)  # type: ignore[arg-type]
    pair = open_backend(engine, 1).pair(forward, backward)
    image = pair.forward({"z": rng.standard_normal((2, 6)).astype(np.float32)})["image"].copy()
    gradient = pair.backward({"image": rng.standard_normal(image.shape).astype(np.float32)})["z"]
    code = open_backend(engine, 1).program(str(opened.graph("encoder"))).run({"image": image})["z"]
    return [image, gradient, code]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_engines_compute_a_shared_bundle_as_one_with_inline_weights(
    vae_bundle: Path, vae_plan: Any, tmp_path: Path, engine: str
) -> None:
    pytest.importorskip(engine)
    inline = {f"graphs/{role}.onnx": m.SerializeToString() for role, m in vae_plan.graphs.items()}
    old = update_bundle(
        Bundle(Path(_copy(vae_bundle, tmp_path / "old.bundle")), Bundle.open(vae_bundle).manifest),
        files=inline, drop=[WEIGHTS],
    )  # fmt: skip
    assert WEIGHTS not in old.manifest.files
    found = [_step(engine, path, np.random.default_rng(7)) for path in (vae_bundle, old.path)]
    for shared, expected in zip(*found, strict=True):
        np.testing.assert_allclose(shared, expected, **CLOSE)  # type: ignore[call-overload]


def _copy(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target))


def test_parity_looks_at_the_shared_weights(
    vae_plan: Any, vae_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(plan: Any) -> dict[str, bytes]:
        files = files_of(plan)
        weights = np.frombuffer(files[WEIGHTS], np.float32) * np.float32(1.1)
        return {**files, WEIGHTS: weights.tobytes()}

    monkeypatch.setattr("unblemish.export.plan.files_of", spoiled)
    with pytest.raises(Exception, match="export refused"):
        write_plan(vae_plan, vae_checkpoint, tmp_path / "part.bundle", ExportOptions())
    assert not (tmp_path / "part.bundle").exists()


def test_the_generator_of_a_bundle_can_be_exported_again(vae_bundle: Path, tmp_path: Path) -> None:
    generator = Bundle.open(vae_bundle).graph("generator")
    options = ExportOptions(value_range=(0.0, 1.0))
    again = build_bundle(generator, tmp_path / "again.bundle", options=options)
    assert again.manifest.parity["image_generator"] < 1e-5


def test_graphs_without_large_weights_have_no_file_of_weights() -> None:
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    assert shared_files({"graphs/a.onnx": model}) == {"graphs/a.onnx": model.SerializeToString()}


def test_a_temporary_folder_that_is_full_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left on device"), written({"a/b": b"1"}):
        pass


def test_a_shrunken_bundle_shares_its_weights_too(
    vae_bundle: Path, shrink: Callable[[Bundle], Bundle]
) -> None:
    bundle = Bundle.open(vae_bundle)
    z = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)

    def images() -> Any:
        program = open_backend("onnxruntime", 1).program(str(bundle.graph("generator")))
        return program.run({"z": z})["image"].copy()

    original = images()
    after = shrink(bundle)
    # weights rounded by up to 2^-11
    np.testing.assert_allclose(images(), original, rtol=1e-2, atol=1e-2)
    assert not np.array_equal(images(), original)
    size = [sum(record.bytes for record in b.manifest.files.values()) for b in (after, bundle)]
    assert size[0] < size[1]
    assert main(["show", str(vae_bundle)]) == 0
    read = {
        entry.value
        for role in after.manifest.graphs
        for tensor in onnx.load(after.graph(role), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert (WEIGHTS in after.manifest.files) == bool(read)  # no file that nothing reads


@pytest.fixture
def shrink() -> Callable[[Bundle], Bundle]:
    """`shrink` of examples/shrink_bundle.py."""
    import importlib.util

    path = Path(__file__).parents[3] / "examples" / "shrink_bundle.py"
    spec = importlib.util.spec_from_file_location("shrink_bundle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Bundle], Bundle] = module.shrink
    return found
