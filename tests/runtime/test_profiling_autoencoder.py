"""The profile of an autoencoder: every step is timed, and the command says them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unblemish.bundle import Bundle
from unblemish.cli import main
from unblemish.images import write_image
from unblemish.runtime.profiling import profile_projection


def test_turn_and_step_are_timed(make_energy_bundle: Callable[..., Bundle]) -> None:
    times = profile_projection(make_energy_bundle(), seconds=0)
    assert set(times) == {"turn", "step"}
    assert all(t.p50 > 0 and t.samples >= 5 for t in times.values())


def test_step_of_the_code_is_timed_where_the_decoder_is_apart(
    make_energy_bundle: Callable[..., Bundle],
) -> None:
    times = profile_projection(make_energy_bundle(latent=True), seconds=0)
    assert set(times) == {"turn", "step", "code"}
    assert times["code"].p50 > 0


def test_the_command_prints_stages_and_steps(
    make_energy_bundle: Callable[..., Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, folder = make_energy_bundle(), tmp_path / "frames"
    folder.mkdir()
    frame = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
    write_image(folder / "a.png", frame)
    run: list[Any] = ["profile", str(bundle.path), "--images", str(folder), "--seconds", "0"]
    assert main([*run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["refine"] == "energy"
    assert found["per_image_ms"]["forward"]["p50"] > 0
    assert main(run) == 0
    assert "a turn of the fast schedule" in capsys.readouterr().out
    assert main(["profile", str(bundle.path)]) == 2
    assert "--images" in capsys.readouterr().err
    assert main([*run, "--baseline", "torch"]) == 2
