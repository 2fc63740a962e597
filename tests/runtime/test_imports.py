"""What the edge install loads, and what it must not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unblemish.bundle import Bundle

HEAVY = {"torch", "onnx", "onnx_ir", "matplotlib", "sklearn", "openvino", "jinja2", "pandas"}


def _loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    return set(json.loads(output.splitlines()[-1]))


def _modules_after(code: str) -> set[str]:
    return {name.partition(".")[0] for name in _loaded_after(code)}


def test_import_unblemish_loads_next_to_nothing() -> None:
    modules = _modules_after("import unblemish")
    assert not modules & (HEAVY | {"numpy", "cv2", "onnxruntime", "pydantic", "skimage", "typer"})


def test_inspection_on_a_cpu_imports_nothing_heavy(tiny_bundle: Bundle, tmp_path: Path) -> None:
    frame = tmp_path / "frame.npy"
    np.save(frame, np.full((20, 20, 3), 99, np.uint8))
    modules = _modules_after(
        "import numpy, unblemish\n"
        f"with unblemish.Inspector.open({str(tiny_bundle.path)!r}, threads=1) as i:\n"
        f"    print(i.inspect(numpy.load({str(frame)!r})).verdict)"
    )
    assert not modules & (HEAVY | {"skimage", "typer", "rich"})
    assert "onnxruntime" in modules


def test_projection_on_a_cpu_imports_nothing_of_the_device(
    make_energy_bundle: Callable[..., Bundle],
) -> None:
    loaded = _loaded_after(
        "import numpy, unblemish\n"
        f"with unblemish.Inspector.open({str(make_energy_bundle().path)!r}, threads=1) as i:\n"
        "    print(i.search(numpy.full((20, 20), 99, numpy.uint8)).status)"
    )
    device = ("unblemish.kernels.cuda", "unblemish.runtime.device", "pycuda")
    assert not {name for name in loaded if name.startswith(device)}
    assert "unblemish.runtime.energy_search" in loaded
