"""Bundles: what is written is read back; what is missing, changed or foreign is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unblemish.bundle import Bundle, update_bundle, write_bundle
from unblemish.errors import BundleError, ConfigError, UnblemishError

FIELDS: dict[str, Any] = {
    "name": "plate",
    "created_by": "0.0.0",
    "model": {
        "kind": "vae",
        "latent_size": 4,
        "parameters": 10,
        "source": "plate.pt",
        "source_sha256": "0" * 64,
    },
    "graphs": {
        "generator": {
            "file": "generator.onnx",
            "inputs": [{"name": "z", "shape": ["batch", 4], "dtype": "float32", "role": "latent"}],
            "outputs": [],
            "flops": 1,
        }
    },
    "preprocess": {"width": 8, "height": 8, "channels": 1, "low": 0.0, "high": 1.0},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(
        tmp_path / "plate.bundle", {"generator.onnx": b"graph", "a/b.npz": b"12"}, FIELDS
    )


def test_bundle_round_trips(bundle: Bundle) -> None:
    again = Bundle.open(bundle.path)
    assert again.manifest == bundle.manifest
    assert again.graph("generator").read_bytes() == b"graph"
    assert again.file("a/b.npz").read_bytes() == b"12"


def _truncate(folder: Path) -> None:
    (folder / "generator.onnx").write_bytes(b"gra")


def _flip(folder: Path) -> None:
    (folder / "generator.onnx").write_bytes(b"grapH")


def _remove(folder: Path) -> None:
    (folder / "generator.onnx").unlink()


def _manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "generator.onnx.*truncated or changed"),
        (_flip, "generator.onnx.*truncated or changed"),
        (_remove, "generator.onnx' is missing"),
        (_manifest(lambda m: m.update(schema_version=99)), "newer than this unblemish"),
        (_manifest(lambda m: m.update(extra=1)), "not valid at 'extra'"),
        (_manifest(lambda m: m["preprocess"].update(width=-3)), "preprocess.width"),
        (
            _manifest(lambda m: m["files"].update({"../x": m["files"]["a/b.npz"]})),
            "outside the folder",
        ),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
    ],
)
def test_open_refuses_when_damaged(
    bundle: Bundle, damage: Callable[[Path], None], message: str
) -> None:
    damage(bundle.path)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


def test_open_refuses_when_path_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "nothing.bundle")


def test_graph_names_those_present_when_absent(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no 'encoder' graph.*generator"):
        bundle.graph("encoder")


def test_file_refuses_what_the_manifest_does_not_vouch_for(bundle: Bundle) -> None:
    (bundle.path / "engine.plan").write_bytes(b"code")
    with pytest.raises(BundleError, match="not loaded"):
        bundle.file("engine.plan")


def test_write_replaces_an_older_bundle(bundle: Bundle) -> None:
    write_bundle(bundle.path, {"generator.onnx": b"new"}, FIELDS)
    assert Bundle.open(bundle.path).graph("generator").read_bytes() == b"new"
    assert not (bundle.path / "a").exists()
    assert [p.name for p in bundle.path.parent.iterdir()] == ["plate.bundle"]


def test_write_spares_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BundleError, match="is no bundle; nothing was written"):
        write_bundle(tmp_path / "photos", {"generator.onnx": b"graph"}, FIELDS)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_write_leaves_the_old_bundle_when_it_fails(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UnblemishError, match="No space left"):
        write_bundle(bundle.path, {"generator.onnx": bundle.path / "generator.onnx"}, FIELDS)
    assert Bundle.open(bundle.path).graph("generator").read_bytes() == b"graph"
    assert [p.name for p in bundle.path.parent.iterdir()] == ["plate.bundle"]


def test_with_rgi_changes_memory_alone(bundle: Bundle) -> None:
    assert bundle.with_rgi(polarity="dark").manifest.rgi.polarity == "dark"
    assert Bundle.open(bundle.path).manifest.rgi.polarity == "both"


@pytest.mark.parametrize(
    ("changes", "message"), [({"polarity": "grey"}, "polarity.*grey"), ({"lamb": 1}, "lamb")]
)
def test_with_rgi_refuses_what_it_does_not_know(
    bundle: Bundle, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bundle.with_rgi(**changes)


def test_update_changes_fields_and_files(bundle: Bundle) -> None:
    changed = update_bundle(bundle, files={"scale.npz": b"s"}, millimetres_per_pixel=0.05)
    again = Bundle.open(bundle.path)
    assert again.manifest == changed.manifest
    assert again.manifest.millimetres_per_pixel == 0.05
    assert again.file("scale.npz").read_bytes() == b"s"


def test_update_leaves_the_manifest_when_killed_before_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unblemish.bundle.store.write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        update_bundle(bundle, files={"generator.onnx": b"other"}, millimetres_per_pixel=0.05)
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_write_keeps_the_only_copy_when_nothing_can_be_moved_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, target = os.rename, bundle.path

    def stubborn(source: Any, destination: Any) -> None:
        if Path(destination) == target:
            raise OSError(5, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", stubborn)
    with pytest.raises(BundleError, match="Input/output error"):
        write_bundle(target, {"generator.onnx": b"other"}, FIELDS)
    (kept,) = target.parent.glob(".plate.bundle.old.*/bundle/generator.onnx")
    assert kept.read_bytes() == b"graph"


@pytest.mark.parametrize("files", [None, {"scale.npz": b"s"}])
def test_update_does_not_vouch_for_a_file_that_changed_meanwhile(
    bundle: Bundle, files: dict[str, bytes | Path] | None
) -> None:
    bundle.graph("generator").write_bytes(b"other")
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match=r"'generator\.onnx' differs"):
        update_bundle(bundle, files=files, millimetres_per_pixel=0.05)
    assert (bundle.path / "manifest.json").read_bytes() == before
