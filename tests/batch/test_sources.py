"""What a batch inspects, and under which names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from unblemish.batch.album import Album
from unblemish.batch.records import record_of, to_json
from unblemish.batch.run import Result, latency_percentiles
from unblemish.batch.sources import Source, list_sources, read_frames
from unblemish.errors import SourceError
from unblemish.runtime.inspection import Inspection, Status


def inspection(score: float) -> Inspection:
    """An inspection of a 4 x 4 frame."""
    empty = np.zeros((4, 4), np.float32)
    return Inspection(
        mask=empty > 0, score=empty, restored=empty, regions=(), verdict="pass",
        image_score=score, status=Status.CONVERGED, steps=3, objective=float("nan"),
    )  # fmt: skip


def test_sources_are_named_by_their_place_in_the_folder(tmp_path: Path) -> None:
    for name in ("good/1.png", "hole/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    named = [(source.name, source.category) for source in list_sources([tmp_path])]
    assert named == [("good/1", "good"), ("hole/1", "hole")]


def test_sources_leave_out_the_results(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/1.png").write_bytes(b"x")
    with pytest.raises(SourceError, match="nothing to inspect"):
        list_sources([tmp_path], leave_out=tmp_path / "out")


def test_frames_carry_their_error(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((3, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"")
    good, bad = read_frames(list_sources([tmp_path]))
    assert good.image is not None
    assert good.error is None
    assert bad.image is None
    assert "empty" in str(bad.error)


def test_records_say_none_for_what_is_not_finite() -> None:
    source = Source(Path("x.png"), "x", "good")
    record = record_of(source, inspection(float("inf")), latency_ms=1.0)
    assert record["image_score"] is None
    assert '"objective": null' in to_json(record)


def test_latency_percentiles_leave_errors_out() -> None:
    records = [{"latency_ms": 10.0}, {"error": "x"}, {"latency_ms": 20.0}]
    assert latency_percentiles(records)["p50"] == pytest.approx(15.0)
    assert latency_percentiles([{"error": "x"}]) == {"p50": None, "p90": None, "p99": None}


def test_album_keeps_the_highest_scores_of_each_category_and_shows_them_in_order() -> None:
    album = Album(categories=8)  # three pictures each
    for number, score in enumerate([0.5, 0.1, 0.4, 0.2, 0.3]):
        source = Source(Path(f"{number}.png"), str(number), "hole")
        found = inspection(score)
        frame = np.zeros((4, 4), np.uint8)
        album.add(Result(source, record_of(source, found, 1.0), frame, found))
    names = [figure.caption.split(":")[0] for figure in album.figures()["hole"]]
    assert names == ["0", "2", "4"]


def test_equal_names_are_told_apart_by_folder_suffix_and_number(tmp_path: Path) -> None:
    names = ("good/1.png", "hole/1.png", "hole/1.jpg", "new/hole/1.jpg", "new/hole/2.jpg")
    paths = [tmp_path / name for name in names]
    named = [source.name for source in list_sources(paths)]
    assert named == ["good/1", "hole/1.png", "hole/1.jpg", "hole/1.jpg-2", "2"]
