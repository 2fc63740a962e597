"""Signatures read from the sources of the CUDA kernels."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from ctypes import CDLL, c_void_p
from pathlib import Path

import numpy as np
import pytest
from cuda_emulation import SOURCES

from unblemish.errors import BackendError
from unblemish.kernels.cuda import driver, energy_terms, feature_terms, image_terms
from unblemish.kernels.cuda import signatures as module
from unblemish.kernels.cuda.signatures import signatures


def test_every_entry_of_every_source_is_read() -> None:
    entries = sum(
        path.read_text(encoding="utf-8").count('extern "C" __global__')
        for path in module.SOURCES.glob("*.cu")
    )
    assert len(signatures()) == entries >= 40


def test_every_kernel_is_emulated(emulated: Callable[[str], CDLL]) -> None:
    """So that the double can launch whatever `CudaKernels` may, packed as C++ unpacks it."""
    libraries = [emulated(source) for source in SOURCES]
    for name in signatures():
        found = [lib for lib in libraries if hasattr(lib, f"launch_{name}")]
        assert found, f"{name} is missing from tests/kernels/emulate_*.cpp"
        assert c_void_p.in_dll(found[0], f"launch_{name}").value


def test_a_signature_is_that_of_its_source() -> None:
    adam = signatures()["adam"]
    assert adam.source == "adam"
    assert [p.name for p in adam.parameters] == ["p", "grad", "m", "v", "step", "count"]
    assert [p.written for p in adam.parameters[:4]] == [True, False, True, True]
    assert struct.calcsize(adam.format) == 4 * 8 + 8 * 4 + 8
    weights = {p.name: p for p in signatures()["share_gradient"].parameters}["weights"]
    assert weights.dtype == np.float16
    assert {p.name: p for p in signatures()["settle"].parameters}["least"].format == "d"


def test_limits_of_the_host_are_those_of_the_sources() -> None:
    text = "".join(path.read_text() for path in sorted(module.SOURCES.glob("*.cu*")))
    stated = dict(re.findall(r"constexpr int (\w+) = (\d+);", text))
    for name, value in {
        "kRoom": image_terms._ROOM,
        "kAcross": image_terms._ACROSS,
        "kMostReach": energy_terms._NARROW // 2,
        "kMostChannels": feature_terms.MOST_CHANNELS,
        "kMostRank": feature_terms.MOST_DIRECTIONS,
        "kTile": feature_terms._TILE,
        "kThreads": driver.THREADS,
    }.items():
        assert int(stated[name]) == value, name
    assert image_terms._DOWN * image_terms._ACROSS == driver.THREADS == energy_terms._SIDE**2


@pytest.mark.parametrize("kind", ["long double*", "unsigned long", "Unknown", "const Thing*"])
def test_what_cannot_be_read_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    entry = f'extern "C" __global__ void __launch_bounds__(256)\n    unblemish_odd({kind} x) {{'
    (tmp_path / "odd.cu").write_text(entry)
    monkeypatch.setattr(module, "SOURCES", tmp_path)
    with pytest.raises(BackendError, match="kernel odd: cannot read its parameter"):
        signatures.__wrapped__()
    (tmp_path / "odd.cu").unlink()
    with pytest.raises(BackendError, match="sources of the CUDA kernels are missing"):
        signatures.__wrapped__()
