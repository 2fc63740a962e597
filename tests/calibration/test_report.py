"""The report and the command line of calibration."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.report import (
    calibration_page,
    chosen_rows,
    rate_note,
    report_path,
    weakness_note,
)
from unblemish.cli import create_app


@pytest.fixture
def result(part_bundle, normals_dir):
    (normals_dir / "broken.png").write_bytes(b"no picture")
    return calibrate(part_bundle, normals_dir, images=8, share=0.5)


def test_page_shows_what_was_chosen_and_why(result) -> None:
    page = calibration_page(result)
    for name, value, why in chosen_rows(result):
        assert name in page
        assert value in page
        assert why in page
    assert page.count("data:image/png;base64,") == 2 + 8  # two plots, one example of each kind
    assert "broken.png" in page
    assert not re.search(r"(src|href)=[\"']https?:", page)


def test_rate_note_admits_what_is_extrapolated(result) -> None:
    note = rate_note(result)
    assert "0 of the 20 normal images used are rejected" in note
    assert "20 images show no rate below 4.76 %" in note
    assert "0.1 % asked for is extrapolated" in note
    assert "1000 images would show it" in note


def test_weakness_is_named_where_most_defects_pass(result) -> None:
    assert weakness_note(result) is None
    weak = result.calibration.model_copy(update={"detection_rate": 0.25, "dice": 0.2})
    note = weakness_note(replace(result, calibration=weak))
    assert note is not None
    assert "25 % are rejected, with a mean Dice of 0.20" in note


def test_report_lies_beside_the_bundle(tmp_path) -> None:
    assert report_path(tmp_path / "part.bundle") == tmp_path / "part.calibration.html"
    assert report_path(tmp_path / "part") == tmp_path / "part.calibration.html"


def _run(*arguments: str):
    return CliRunner().invoke(create_app(), ["calibrate", *arguments])


def test_command_writes_bundle_table_and_report(part_bundle, normals_dir) -> None:
    done = _run(
        str(part_bundle.path), "--normals", str(normals_dir), "--images", "8",
        "--false-reject", "0.05", "--share", "0.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    calibration = Bundle.open(part_bundle.path).manifest.calibration
    assert calibration is not None
    assert calibration.false_reject_rate == 0.05
    assert calibration.normals == 20
    assert f"{calibration.pixel_threshold:.4g}" in done.output
    assert "false-reject rate 5 %" in done.output
    report = part_bundle.path.with_name("part.calibration.html")
    assert f"report: {report}" in done.output
    assert report.read_text("utf-8").startswith("<!")


def test_command_does_without_the_report_packages(part_bundle, normals_dir, monkeypatch) -> None:
    monkeypatch.setattr("unblemish.report.page.report_available", lambda: False)
    done = _run(
        str(part_bundle.path), "--normals", str(normals_dir), "--images", "8", "--share", "0.25"
    )
    assert done.exit_code == 0, done.output
    assert "pip install 'unblemish[report]'" in done.output
    assert not part_bundle.path.with_name("part.calibration.html").exists()


def test_command_fails_with_one_clear_line(part_bundle, tmp_path) -> None:
    done = _run(str(part_bundle.path), "--normals", str(tmp_path / "nowhere"))
    assert done.exit_code == 2
    assert "nowhere does not exist" in done.output
    done = _run(str(tmp_path / "no.bundle"), "--normals", str(tmp_path))
    assert done.exit_code == 2
    assert "is no bundle" in done.output


def test_examples_are_chosen_by_number_not_by_success(result) -> None:
    dices = [example.dice for example in result.examples]
    np.testing.assert_allclose(dices, [kind.dice for kind in result.kinds])
