"""Bad input of every kind: exit code 2, one message that says what to do, no traceback."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from unblemish.bundle import Bundle

Command = Callable[..., Any]


def assert_refused(result: Any, *words: str) -> None:
    """The command failed by one clear message that holds `words`."""
    assert result.code == 2, result
    assert result.err.startswith("error: "), result.err
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err
    for word in words:
        assert word in result.err


def no_bundle(bundle: Path) -> None:
    for path in bundle.iterdir():
        path.unlink()
    bundle.rmdir()


def foreign_folder(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def broken_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"schema_version": 1, "name"')


def binary_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")


def foreign_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"schema_version": 1, "name": "x", "colour": "red"}')


def newer_schema(bundle: Path) -> None:
    fields = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**fields, "schema_version": 2}))


def changed_graph(bundle: Path) -> None:
    content = bytearray((bundle / "forward.onnx").read_bytes())
    content[-10] ^= 1
    (bundle / "forward.onnx").write_bytes(content)


def missing_graph(bundle: Path) -> None:
    (bundle / "backward.onnx").unlink()


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (no_bundle, "is not a folder"),
    (foreign_folder, "has no manifest.json"),
    (broken_manifest, "damaged"),
    (binary_manifest, "cannot be read"),
    (foreign_manifest, "not written by unblemish"),
    (newer_schema, "newer than this unblemish"),
    (changed_graph, "'forward.onnx' differs"),
    (missing_graph, "'backward.onnx' is missing"),
]


@pytest.mark.parametrize("command", ["inspect", "profile"])
@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[d[0].__name__ for d in DAMAGES])
def test_damaged_bundles_are_refused(
    run: Command,
    bundle: Path,
    parts: Path,
    tmp_path: Path,
    command: str,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    damage(bundle)
    extra = [parts / "test", "--out", tmp_path / "out"] if command == "inspect" else []
    assert_refused(run(command, bundle, *extra), words)


def test_a_graph_that_is_no_onnx_is_refused(run: Command, bundle: Path, parts: Path) -> None:
    from unblemish.bundle import update_bundle

    update_bundle(Bundle.open(bundle), files={"forward.onnx": b"these are not the bytes"})
    assert_refused(run("inspect", bundle, parts / "test", "--out", parts / "out"), "forward.onnx")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("Dear camera,")


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


def truncated_jpeg(path: Path) -> None:
    done, buffer = cv2.imencode(".jpg", np.full((64, 64), 99, np.uint8))
    assert done
    path.write_bytes(bytes(buffer)[:-40])


def nan_tiff(path: Path) -> None:
    image = np.full((24, 24), 0.5, np.float32)
    image[3, 4] = np.nan
    done, buffer = cv2.imencode(".tiff", image)
    assert done
    path.write_bytes(bytes(buffer))


FILES: list[tuple[Callable[[Path], None], str]] = [
    (empty, "the file is empty"),
    (text, "not an image"),
    (truncated, "truncated"),
    (flipped, "damaged"),
    (truncated_jpeg, "the JPEG is truncated"),
    (nan_tiff, "1 of 576 pixels are NaN"),
]


@pytest.mark.parametrize(("damage", "words"), FILES, ids=[f[0].__name__ for f in FILES])
def test_damaged_images_are_stated(
    run: Command,
    bundle: Path,
    parts: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    path = parts / "test/good/0.png"
    damage(path)
    result = run("inspect", bundle, path, "--out", tmp_path / "out")
    assert_refused(result, words, str(path))


def test_a_damaged_video_is_stated(run: Command, bundle: Path, tmp_path: Path) -> None:
    video = tmp_path / "belt.mp4"
    video.write_bytes(b"\x00" * 2000)
    assert_refused(run("inspect", bundle, video, "--out", tmp_path / "out"), "no frame")


def test_an_empty_folder_is_refused(run: Command, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert_refused(run("inspect", bundle, folder, "--out", tmp_path / "out"), "no image in")


def test_an_output_folder_that_cannot_be_made_is_refused(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("inspect", bundle, parts / "test", "--out", tmp_path / "file" / "out")
    assert_refused(result, "cannot write")


def test_an_output_folder_that_is_a_file_is_refused(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("inspect", bundle, parts / "test", "--out", tmp_path / "file")
    assert_refused(result, "is a file; --out wants a folder")


def test_a_frame_of_one_row_does_not_burst_the_report(
    run: Command, bundle: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "strip.png"), np.full((1, 3000), 128, np.uint8))
    result = run("inspect", bundle, tmp_path / "strip.png", "--out", tmp_path / "out")
    assert result.code in (0, 1), result.err
    assert (tmp_path / "out/report.html").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_results_is_stated(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.jsonl").symlink_to("/dev/full")
    result = run("inspect", bundle, parts / "test", "--out", tmp_path / "out")
    assert_refused(result, "cannot write", "No space left")


def test_a_full_disk_under_a_picture_leaves_no_half_file(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("unblemish.files.os.fsync", fsync)
    out = tmp_path / "out"
    assert_refused(run("inspect", bundle, parts / "test", "--out", out), "No space left")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["results.jsonl"]


@pytest.mark.parametrize("command", ["inspect", "profile"])
def test_an_unknown_backend_is_refused(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, command: str
) -> None:
    extra = [parts / "test", "--out", tmp_path / "out"] if command == "inspect" else []
    result = run(command, bundle, *extra, "--backend", "abacus")
    assert_refused(result, "unknown backend 'abacus'", "onnxruntime")


@pytest.mark.parametrize("deadline", ["0", "-5", "nan"])
def test_a_deadline_that_is_not_positive_is_refused(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, deadline: str
) -> None:
    result = run(
        "inspect", bundle, parts / "test", "--out", tmp_path / "out", f"--deadline-ms={deadline}"
    )
    assert_refused(result, "deadline")


def test_a_truth_folder_that_is_none_is_refused(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    result = run(
        "inspect", bundle, parts / "test", "--out", tmp_path / "out", "--truth", tmp_path / "none"
    )
    assert_refused(result, "--truth")


def test_a_white_level_that_is_not_positive_is_refused_at_once(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("inspect", bundle, parts / "test", "--out", out, "--white=-1")
    assert_refused(result, "white, the intensity of white, must be a positive number; got -1")
    assert not out.exists()
