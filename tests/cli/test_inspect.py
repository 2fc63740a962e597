"""`unblemish inspect` on a bundle whose right answers are known."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from unblemish.bundle import write_bundle
from unblemish.runtime.inspector import Inspector

Command = Callable[..., Any]

FIGURES = {
    "dice_best_per_image",
    "dice_at_threshold",
    "iou_at_threshold",
    "pixel_auroc",
    "aupro",
    "image_auroc",
    "detection_rate",
    "false_reject_rate",
    "images",
    "latency_ms",
}


def lines(text: str) -> list[dict[str, Any]]:
    """Parse JSON lines strictly: NaN is not JSON."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_inspect_exits_with_0_when_all_is_clean(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    result = run("inspect", bundle, parts / "test" / "good", "--out", tmp_path / "out")
    assert result.code == 0
    assert len(result.out.splitlines()) == 4
    assert "3 images inspected, 0 with defects" in result.err


def test_inspect_exits_with_1_when_defects_are_found(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    result = run("inspect", bundle, parts / "test", "--out", tmp_path / "out")
    assert result.code == 1
    assert result.out.count("fail") == 2


def test_inspect_writes_the_exact_mask_at_native_size(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("inspect", bundle, parts / "test", "--out", out)
    mask = cv2.imread(str(out / "masks/hole/0.png"), cv2.IMREAD_UNCHANGED)
    truth = cv2.imread(str(parts / "ground_truth/hole/0_mask.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, truth)
    restored = cv2.imread(str(out / "restored/hole/0.png"), cv2.IMREAD_UNCHANGED)
    assert restored.shape == mask.shape
    assert (out / "overlays/hole/0.png").is_file()


def test_inspect_json_is_one_object_a_line_and_the_same_in_the_file(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    result = run("inspect", bundle, parts / "test", "--out", tmp_path / "out", "--json")
    records = lines(result.out)
    assert records == lines((tmp_path / "out/results.jsonl").read_text())
    assert [record["name"] for record in records] == [
        "good/0", "good/1", "good/2", "hole/0", "hole/1",
    ]  # fmt: skip
    hole = records[3]
    assert (hole["verdict"], hole["category"], hole["defect_area"]) == ("fail", "hole", 30)
    assert hole["regions"][0]["box"] == [6, 5, 6, 5]
    assert hole["timings"]["decode"] > 0
    assert all((tmp_path / "out" / path).is_file() for path in hole["files"].values())


def test_inspect_with_truth_writes_the_stated_metrics(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("inspect", bundle, parts / "test", "--out", out, "--truth", parts / "ground_truth")
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"overall", "per_category"}
    assert set(metrics["per_category"]) == {"good", "hole"}
    for figures in (metrics["overall"], *metrics["per_category"].values()):
        assert set(figures) == FIGURES
        assert set(figures["latency_ms"]) == {"p50", "p90", "p99"}
    overall = metrics["overall"]
    assert overall["images"] == 5
    assert overall["false_reject_rate"] == 0.0
    for name in ("dice_best_per_image", "dice_at_threshold", "iou_at_threshold", "image_auroc"):
        assert overall[name] == pytest.approx(1.0)
    assert metrics["per_category"]["good"]["dice_at_threshold"] is None


def test_inspect_report_is_self_contained(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("inspect", bundle, parts / "test", "--out", out, "--truth", parts / "ground_truth")
    page = (out / "report.html").read_text()
    assert not re.search(r"https?://", page)
    assert not re.search(r"<(script|link|iframe)\b", page)
    assert set(re.findall(r'(?:src|href)="([^":]*):', page)) == {"data"}
    assert "2 of 5 images show defects." in page
    assert page.count('alt=""') == 0


def test_inspect_goes_on_after_a_bad_file_and_exits_with_2(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    (parts / "test/good/1.png").write_text("not a picture")
    result = run("inspect", bundle, parts / "test", "--out", tmp_path / "out", "--json")
    assert result.code == 2
    records = lines(result.out)
    assert [("error" in record) for record in records] == [False, True, False, False, False]
    assert "not an image" in records[1]["error"]
    assert "1.png" in result.err


def test_inspect_states_a_missing_file_and_inspects_the_others(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    good = parts / "test/good/0.png"
    result = run("inspect", bundle, good, tmp_path / "no.png", "--out", tmp_path / "out")
    assert result.code == 2
    assert "no.png does not exist" in result.err
    assert "1 image inspected" in result.err


def test_inspect_reads_videos_frame_by_frame(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    video = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 5, (48, 48))
    frame = cv2.imread(str(parts / "test/good/0.png"))
    for _ in range(3):
        writer.write(cv2.resize(frame, (48, 48)))
    writer.release()
    result = run("inspect", bundle, video, "--out", tmp_path / "out", "--json")
    records = lines(result.out)
    assert [record["frame"] for record in records] == [0, 1, 2]
    assert (tmp_path / "out/masks/belt/000002.png").is_file()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_inspect_takes_deep_and_coloured_images(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, dtype: type[np.generic]
) -> None:
    grey = cv2.imread(str(parts / "test/hole/0.png"), cv2.IMREAD_GRAYSCALE)
    deep = (grey / 255).astype(np.float32) if dtype is np.float32 else grey.astype(dtype) * 257
    path = tmp_path / "colour.tiff"
    cv2.imwrite(str(path), np.repeat(deep[..., None], 3, axis=2))
    result = run("inspect", bundle, path, "--out", tmp_path / "out", "--json")
    (record,) = lines(result.out)
    assert (record["verdict"], record["defect_area"]) == ("fail", 30)
    restored = cv2.imread(str(tmp_path / "out" / record["files"]["restored"]), cv2.IMREAD_UNCHANGED)
    assert restored.dtype == dtype


@pytest.mark.parametrize("refine", ["rgi", "none", "l2", "l1"])
def test_inspect_refines_as_asked(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, refine: str
) -> None:
    good = parts / "test/good/0.png"
    result = run(
        "inspect", bundle, good, "--out", tmp_path / "out", "--json", "--refine", refine
    )  # fmt: skip
    (record,) = lines(result.out)
    assert (record["steps"] == 0) == (refine == "none")


def test_inspect_keeps_a_deadline(run: Command, bundle: Path, parts: Path, tmp_path: Path) -> None:
    good = parts / "test/good/0.png"
    result = run(
        "inspect", bundle, good, "--out", tmp_path / "out", "--json",
        "--schedule", "paper", "--max-steps", 10**6, "--deadline-ms", 50,
    )  # fmt: skip
    (record,) = lines(result.out)
    assert record["status"] == "deadline"


def test_inspect_leaves_its_own_results_out_of_a_second_run(
    run: Command, bundle: Path, parts: Path
) -> None:
    out = parts / "test" / "out"
    first = run("inspect", bundle, parts / "test", "--out", out, "--json")
    second = run("inspect", bundle, parts / "test", "--out", out, "--json")
    assert [r["name"] for r in lines(first.out)] == [r["name"] for r in lines(second.out)]


def test_inspect_removes_the_metrics_of_an_older_run(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("inspect", bundle, parts / "test", "--out", out, "--truth", parts / "ground_truth")
    run("inspect", bundle, parts / "test", "--out", out)
    assert not (out / "metrics.json").exists()


def test_inspect_tells_apart_equal_names(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    names = [parts / "test/good/0.png", parts / "test/hole/0.png"]
    result = run("inspect", bundle, *names, "--out", tmp_path / "out", "--json")
    assert [record["name"] for record in lines(result.out)] == ["good/0", "hole/0"]


def test_inspect_interrupted_leaves_whole_files_only(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Inspector.inspect, []

    def inspect(self: Inspector, frame: Any, **rest: Any) -> Any:
        calls.append(frame)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, frame, **rest)

    monkeypatch.setattr(Inspector, "inspect", inspect)
    out = tmp_path / "out"
    result = run("inspect", bundle, parts / "test", "--out", out)
    assert result.code == 130
    assert len(lines((out / "results.jsonl").read_text())) == 2
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [
        "masks/good/0.png", "masks/good/1.png", "overlays/good/0.png", "overlays/good/1.png",
        "restored/good/0.png", "restored/good/1.png", "results.jsonl",
    ]  # fmt: skip


def test_inspect_works_without_the_report_extra(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = run("inspect", bundle, parts / "test/good", "--out", tmp_path / "out")
    assert result.code == 0
    assert "unblemish[report]" in result.err
    assert not (tmp_path / "out/report.html").exists()


def test_inspect_refuses_truth_with_holes_before_any_work(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    (parts / "ground_truth/hole/1_mask.png").unlink()
    out = tmp_path / "out"
    result = run("inspect", bundle, parts / "test", "--out", out, "--truth", parts / "ground_truth")
    assert result.code == 2
    assert "1_mask.png" in result.err
    assert not out.exists()


def test_inspect_states_a_truth_mask_of_another_size(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(parts / "ground_truth/hole/1_mask.png"), np.zeros((5, 7), np.uint8))
    out = tmp_path / "out"
    result = run("inspect", bundle, parts / "test", "--out", out, "--truth", parts / "ground_truth")
    assert result.code == 2
    assert "7 x 5 pixels, the image 24 x 24" in result.err
    assert json.loads((out / "metrics.json").read_text())["overall"]["images"] == 4


def test_inspect_wants_a_calibrated_bundle(
    run: Command,
    parts: Path,
    tmp_path: Path,
    graphs: dict[str, bytes],
    manifest: dict[str, Any],
) -> None:
    fields = {**manifest, "calibration": None}
    path = write_bundle(tmp_path / "raw.bundle", graphs, fields).path
    result = run("inspect", path, parts / "test", "--out", tmp_path / "out")
    assert result.code == 2
    assert "unblemish calibrate" in result.err


def test_inspect_names_files_by_suffix_when_stems_are_equal(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    folder = parts / "test/good"
    shutil.copy(folder / "0.png", folder / "0.bmp.png")
    cv2.imwrite(str(folder / "0.bmp"), cv2.imread(str(folder / "0.png")))
    result = run("inspect", bundle, folder, "--out", tmp_path / "out", "--json")
    names = [record["name"] for record in lines(result.out)]
    assert len(set(names)) == len(names) == 5
