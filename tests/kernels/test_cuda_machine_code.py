"""What nvcc makes of the kernels: no spills, and 16-byte access where the sources ask for it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unblemish.kernels.cuda.modules import find_nvcc
from unblemish.kernels.cuda.signatures import SOURCES, signatures

ROOT = Path(__file__).resolve().parents[2]
CHIP = "90"
# Sources whose kernels stream through memory four floats at a time.
STREAMING = {path.stem for path in SOURCES.glob("*.cu") if "load<Width>" in path.read_text()}


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = ROOT / "benchmarks" / "cuda_kernels.py"
    spec = importlib.util.spec_from_file_location("cuda_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["cuda_kernels"] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


def test_streaming_sources_are_known() -> None:
    assert {"adam", "adan", "energy_step", "residual", "rgi_closed_form"} <= STREAMING


@pytest.mark.parametrize("source", sorted(STREAMING))
def test_streaming_kernels_load_and_store_sixteen_bytes(
    report: ModuleType, tmp_path: Path, source: str
) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not installed: the CUDA kernels are not compiled here")
    found = report.compile_source(nvcc, source, CHIP, tmp_path)
    assert set(found) == {s.name for s in signatures().values() if s.source == source}
    assert {name: kernel.spilled for name, kernel in found.items() if kernel.spilled} == {}
    if shutil.which("cuobjdump") is None:
        pytest.skip("cuobjdump is not on PATH: the machine code is not looked at")
    for name, kernel in found.items():
        if name != "all_finite" and not name.startswith(("finish", "settle")):
            assert kernel.wide_loads, f"{name} loads no 16 bytes at once"
    writers = ("norms", "squared_distance", "all_finite", "void_chunks", "finish_sum")
    for name, kernel in found.items():
        if name not in writers and not name.startswith(("finish", "settle")):
            assert kernel.wide_stores, f"{name} stores no 16 bytes at once"


def test_what_ptxas_says_is_read(report: ModuleType) -> None:
    said = (
        "ptxas info    : Compiling entry function 'unblemish_a' for 'sm_90'\n"
        "ptxas info    : Function properties for unblemish_a\n"
        "    24 bytes stack frame, 36 bytes spill stores, 40 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 13456 bytes smem\n"
        "ptxas info    : Compiling entry function 'unblemish_b' for 'sm_90'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 12 registers\n"
    )
    found = report.read_ptxas(said)
    assert (found["a"].registers, found["a"].spilled, found["a"].stack) == (40, 76, 24)
    assert (found["a"].shared, found["b"].registers, found["b"].shared) == (13456, 12, 0)


def test_wide_accesses_are_those_of_one_kernel(report: ModuleType) -> None:
    listing = (
        "Function : unblemish_a\n LDG.E.128.CONSTANT R4 ;\n STG.E.128 R2 ;\n LDG.E R1 ;\n"
        "Function : unblemish_ab\n LDG.E.128 R1 ;\n LDG.E.128 R1 ;\n LDS.128 R1 ;\n"
    )
    assert report.wide_accesses(listing, "a") == (1, 1)
    assert report.wide_accesses(listing, "ab") == (2, 0)
