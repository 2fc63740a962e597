"""Builds `host_libcuda.cpp` as libcuda.so.1, with all that pycuda's extension asks for."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".cpp")


def build_library(folder: Path) -> Path:
    """The folder that holds libcuda.so.1; skips the test where pycuda or a tool is missing."""
    found = importlib.util.find_spec("pycuda")
    if found is None or found.origin is None:
        pytest.skip("pycuda is not installed")
    compiler, names = shutil.which("g++"), shutil.which("nm")
    if compiler is None or names is None:
        pytest.skip("no g++ and nm to build a driver library of the host with")
    (extension,) = Path(found.origin).parent.glob("_driver*.so")
    command = [names, "-D", "--undefined-only", str(extension)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = _SOURCE.read_text(encoding="utf-8")
    ours = set(re.findall(r"^int (cu\w+)\(", text, re.MULTILINE))
    missing = sorted(set(re.findall(r"\b(cu[A-Z]\w+)", listed)) - ours)
    stubs = "".join(f"int {name}() {{ return 801; }}\n" for name in missing)
    source = folder / "libcuda.cpp"
    source.write_text(text + f'\nextern "C" {{\n{stubs}}}\n', encoding="utf-8")
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    library = str(folder / "libcuda.so.1")
    subprocess.run([compiler, *options, str(source), "-o", library, "-ldl"], check=True)
    return folder
