"""The one place that says which engine runs a bundle here, and why the others do not."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from unblemish.bundle.engines import Device, find_engines, this_system, why_none
from unblemish.errors import BackendError, MissingDependencyError
from unblemish.runtime.backends import CHAIN
from unblemish.runtime.backends.nvidia import Gpu, find_gpu
from unblemish.runtime.backends.protocol import Backend

if TYPE_CHECKING:
    from unblemish.bundle import Bundle

# The oldest that TensorRT 10 and CUDA 13 compile for (their release notes, supported hardware).
_LEAST_CAPABILITY = (7, 5)
_PROVIDERS = {"ort-tensorrt": "TensorrtExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
_LOG = logging.getLogger("unblemish")


@dataclass(frozen=True)
class Obstacle:
    """Why an engine cannot run here, what to do about it, and whether that is a fault.

    `absent`: it was never there; otherwise it is there and does not work.
    """

    reason: str
    advice: str
    absent: bool = True


def choose(name: str, threads: int | None, bundle: Bundle | None = None) -> Backend:
    """Open an engine of the chain: the one named, or with 'auto' the first that runs here.

    One line says which it is and why those before it are not, as information, and as a warning
    where the machine has a GPU that is then not used.
    Raises: BackendError where the one named, or none, can run.
    """
    if name != "auto":
        obstacle = obstacle_of(name, bundle)
        if obstacle is not None:
            raise BackendError(f"backend '{name}' cannot run: {obstacle.reason}. {obstacle.advice}")
        return _open(name, threads, bundle)
    return _first(CHAIN, threads, bundle)


def _first(names: Sequence[str], threads: int | None, bundle: Bundle | None) -> Backend:
    """Open the first that runs here. Raises: BackendError where none does."""
    refused: dict[str, Obstacle] = {}
    for link in names:
        obstacle = obstacle_of(link, bundle)
        if obstacle is None:
            _tell(link, refused)
            return _open(link, threads, bundle)
        refused[link] = obstacle
    raise BackendError(f"no engine runs this bundle here: {_reasons(refused)}")


def obstacle_of(name: str, bundle: Bundle | None = None) -> Obstacle | None:
    """What keeps an engine of the chain from running here, from the cheapest question on."""
    if name == "onnxruntime":
        return _cpu_obstacle(bundle)
    obstacle = _package_obstacle(name) or _gpu_obstacle()
    if obstacle is not None:
        return obstacle
    if name == "tensorrt":
        return _engines_obstacle(bundle)
    return _probe_obstacle(name)


def choice_line(name: str, refused: dict[str, Obstacle]) -> str:
    """One line: what runs, and why what comes before it in the chain does not."""
    return f"engine: {name}" + (f" ({_reasons(refused)})" if refused else "")


def _tell(name: str, refused: dict[str, Obstacle]) -> None:
    wasted = name == "onnxruntime" and isinstance(find_gpu(), Gpu)
    _LOG.log(logging.WARNING if wasted else logging.INFO, choice_line(name, refused))


def _reasons(refused: dict[str, Obstacle]) -> str:
    return "; ".join(f"not {name}: {obstacle.reason}" for name, obstacle in refused.items())


def _cpu_obstacle(bundle: Bundle | None) -> Obstacle | None:
    if bundle is not None and bundle.manifest.precision == "bf16":
        return Obstacle(
            "ONNX Runtime has no bfloat16 convolutions on the CPU",
            "Export the bundle with --precision fp32 or int8 for this machine.",
        )
    return None


def _package_obstacle(name: str) -> Obstacle | None:
    if name == "tensorrt":
        for package in ("tensorrt", "pycuda"):
            if importlib.util.find_spec(package) is None:
                return Obstacle(
                    f"the package {package} is not installed", "pip install 'unblemish[tensorrt]'"
                )
        return None
    import onnxruntime as ort

    provider = _PROVIDERS[name]
    if provider in ort.get_available_providers():
        return None
    return Obstacle(
        f"this onnxruntime was built without {provider}",
        "pip uninstall onnxruntime, then: pip install 'unblemish[cuda]'",
    )


def _gpu_obstacle() -> Obstacle | None:
    gpu = find_gpu()
    if isinstance(gpu, str):
        return Obstacle(gpu, "Install NVIDIA's driver, or use a machine with an NVIDIA GPU.")
    if gpu.capability < _LEAST_CAPABILITY:
        have, least = (".".join(map(str, pair)) for pair in (gpu.capability, _LEAST_CAPABILITY))
        return Obstacle(
            f"{gpu.name} has compute capability {have}, and the libraries are built for {least} on",
            "Use a GPU of the Turing generation or later.",
        )
    return None


def _engines_obstacle(bundle: Bundle | None) -> Obstacle | None:
    """Engines for this device, by the manifest; what is read of them is checked when it is."""
    if bundle is None:
        return None
    manifest, advice = bundle.manifest, f"unblemish build-engines {bundle.path}"
    if not manifest.engines:
        return Obstacle("the bundle holds no TensorRT engines", advice)
    try:
        device = _this_device()
    except (ImportError, MissingDependencyError) as error:
        return Obstacle(f"{error}".rstrip("."), _TENSORRT, absent=False)
    roles = list(manifest.graphs)
    if any(find_engines(manifest, [role], device) for role in roles):
        return None
    return Obstacle(
        f"the bundle holds no engines for {device}; {why_none(manifest, roles, device)}", advice
    )


def engines_there(bundle: Bundle) -> str:
    """How many of a bundle's graphs have engines for this device. Raises: as `_this_device`."""
    manifest, device = bundle.manifest, _this_device()
    count = sum(bool(find_engines(manifest, [role], device)) for role in manifest.graphs)
    return f"engines of {count} of {len(manifest.graphs)} graphs"


def _this_device() -> Device:
    """Raises: MissingDependencyError where TensorRT does not load."""
    from unblemish.runtime.backends.tensorrt_log import version

    gpu = find_gpu()
    assert isinstance(gpu, Gpu)  # asked before
    return Device(version(), ".".join(map(str, gpu.capability)), this_system())


@functools.cache
def _probe_obstacle(name: str) -> Obstacle | None:
    """Run a tiny graph once per process: libraries that are missing show only then."""
    try:
        with resources.as_file(resources.files("unblemish.doctor") / "probe.onnx") as path:
            ramp = np.tile(np.arange(8, dtype=np.float32), (8, 1))[None, None]
            found = _open(name, 1, None).program(str(path)).run({"x": ramp})["z"]
    except Exception as error:  # an engine may fail with whatever it likes; that is the finding
        return Obstacle(f"{error}".rstrip("."), _LIBRARIES[name], absent=False)
    if not np.allclose(found[0, 0, 4, 7], 24):  # Sobel's kernel at the border of a ramp: 4 * 6
        return Obstacle("it gives wrong numbers", "Reinstall onnxruntime-gpu.", absent=False)
    return None


_TENSORRT = "Install TensorRT's libraries: pip install 'unblemish[tensorrt]'"
_LIBRARIES = {
    "ort-cuda": "Install CUDA and cuDNN, for example: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "ort-tensorrt": "Install TensorRT's libraries and put them on LD_LIBRARY_PATH.",
}


def _open(name: str, threads: int | None, bundle: Bundle | None) -> Backend:
    if name == "onnxruntime":
        from unblemish.runtime.backends.onnxruntime import OrtBackend

        return OrtBackend(threads)
    if name == "tensorrt":
        from unblemish.runtime.backends.tensorrt import TensorRtBackend

        # What its engines were not built for goes to the rest of the chain.
        rest = CHAIN[CHAIN.index(name) + 1 :]
        return TensorRtBackend(fallback=partial(_first, rest, threads, bundle))
    from unblemish.runtime.backends.ort_device import OrtDeviceBackend

    precision = "fp32" if bundle is None else bundle.manifest.precision
    return OrtDeviceBackend(name, threads, precision=precision)
