"""Without a C++ compiler: the install succeeds, NumPy computes, and one warning says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unblemish.kernels as package

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import warnings
import numpy as np
from unblemish.kernels import default_kernels

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kernels = [default_kernels(), default_kernels()][0]
one = np.ones((1, 1, 1, 1), np.float32)
mask, cotangent, objective = one.copy(), one.copy(), np.zeros(1)
item = np.ones(1, np.float32)
outputs = dict(mask=mask, cotangent=cotangent, objective=objective)
kernels.rgi_closed_form(0 * one, one, item, item, **outputs)
print(kernels.name, mask.item(), objective.item())
for warning in caught:
    print("WARNING", warning.category.__name__, warning.message)
"""


def _hide_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unblemish.kernels._cpu", None)
    monkeypatch.delitem(sys.modules, "unblemish.kernels.cpu", raising=False)
    monkeypatch.delattr(package, "_cpu", raising=False)
    monkeypatch.delattr(package, "cpu", raising=False)
    monkeypatch.setattr(package, "_warned", False)


def test_default_kernels_warns_once_and_computes_when_the_extension_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _hide_extension(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"without its compiled CPU kernels.*C\+\+20 compiler"):
        kernels = package.default_kernels()
    assert kernels.name == "numpy"
    assert kernels.all_finite(np.zeros(3, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert package.default_kernels().name == "numpy"


def test_default_kernels_are_the_compiled_ones_where_they_were_built() -> None:
    if find_spec("unblemish.kernels._cpu") is None:
        # A compiler, and still no extension: the build is broken, and must not hide as a fallback.
        assert shutil.which("c++") is None, (
            "a C++ compiler is here, but the extension was not built"
        )
        pytest.skip("this install was made without a C++ compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert package.default_kernels().name == "cpu"


def _copy_sources(target: Path) -> None:
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, target / name)
    skip = shutil.ignore_patterns("__pycache__", "*.so", "demo_data")
    for name in ("src", "export", "runtime", "kernels", "calibration"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=skip)


def _environment_without_compiler(folder: Path) -> dict[str, str]:
    folder.mkdir()
    for tool in ("cmake", "ninja", "make", "sh", "env", "uname"):
        path = shutil.which(tool)
        if path is not None:
            (folder / tool).symlink_to(path)
    none = "/bin/false"
    return {"PATH": str(folder), "HOME": str(folder), "CC": none, "CXX": none}


def _run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    done: Any = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="hides the compiler the POSIX way")
def test_install_succeeds_and_computes_when_there_is_no_compiler(tmp_path: Path) -> None:
    for needed in ("pip", "scikit_build_core", "nanobind"):
        pytest.importorskip(needed, reason="building a wheel without network needs it installed")
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    source.mkdir()
    _copy_sources(source)
    environment = _environment_without_compiler(tmp_path / "bin")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps"]
    _run([*pip, "-w", str(wheels), str(source)], environment, tmp_path)

    (wheel,) = wheels.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert "unblemish/py.typed" in names
    assert "unblemish/kernels/include/unblemish/adam.hpp" in names
    assert not [name for name in names if name.endswith(".so")]

    # -S: an editable install's import hook must not put the checkout before the wheel.
    libraries = sysconfig.get_paths()["purelib"]
    search = {**environment, "PYTHONPATH": os.pathsep.join([str(site), libraries])}
    printed = _run([sys.executable, "-S", "-c", PROGRAM], search, tmp_path).splitlines()
    assert printed[0] == "numpy 0.5 0.75"  # 1 - 1/2 and 1 - 1/4
    assert len(printed) == 2
    assert printed[1].startswith("WARNING RuntimeWarning unblemish runs without its compiled CPU")
    assert "takes several times longer" in printed[1]
    assert "install a C++20 compiler" in printed[1]
