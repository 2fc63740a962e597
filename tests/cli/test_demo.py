"""`unblemish demo`: what ships is small, whole, and shows what the package can do."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from unblemish.bundle import Bundle

Command = Callable[..., Any]

DATA = Path(str(resources.files("unblemish").joinpath("demo_data")))
# Shipped with every install: a few megabytes at most.
LARGEST_BYTES = 8_000_000


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_demo_finds_every_defect_and_rejects_no_good_part(
    run: Command, tmp_path: Path, no_network: None
) -> None:
    result = run("demo", "--out", tmp_path / "demo")
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())["overall"]
    assert metrics["images"] == 8
    assert metrics["false_reject_rate"] == 0.0
    assert metrics["image_auroc"] == 1.0
    assert (tmp_path / "demo/report.html").is_file()
    assert "report.html" in result.err


def test_demo_data_is_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < LARGEST_BYTES
    bundle = Bundle.open(DATA / "parts.bundle")
    assert bundle.manifest.calibration is not None
    images = {str(p.relative_to(DATA / "images"))[:-4] for p in DATA.glob("images/*/*.png")}
    masks = {str(p.relative_to(DATA / "ground_truth"))[:-9] for p in DATA.glob("ground_truth/*/*")}
    assert masks == {name for name in images if not name.startswith("good/")}
