"""The examination: findings, each with what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from unblemish import __version__
from unblemish.cores import available_cores
from unblemish.doctor.kernel_probes import probe_cuda_kernels, probe_kernels
from unblemish.doctor.packages import PACKAGES, Package, installed_version
from unblemish.doctor.probes import (
    probe_backend,
    probe_provider,
    probe_video,
)

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.runtime.backends.choose import Obstacle

State = Literal["works", "absent", "broken"]

# Providers that run nothing on this machine: they send the graph elsewhere.
_REMOTE = {"AzureExecutionProvider"}
_COMPILER = (
    "The NumPy kernels give the same numbers, more slowly. For the compiled ones install a C++20 "
    "compiler, then: pip install --force-reinstall --no-deps --no-cache-dir unblemish"
)
_GPU = (
    "Install NVIDIA's driver, or use a machine with an NVIDIA GPU. The CPU's kernels need neither."
)
_NVCC = (
    "Put nvcc on PATH or set NVCC, and the kernels are compiled when first used. Or compile them "
    "into the install, from the sources: pip install . -C cmake.define.UNBLEMISH_CUDA=ON"
)
_CUDA = (
    "Look at nvidia-smi, and install unblemish again for this GPU. Report wrong numbers with the "
    "output of: unblemish doctor"
)
_PROVIDER = {
    "CUDAExecutionProvider": "Install NVIDIA's driver, CUDA and cuDNN of the versions that this "
    "onnxruntime-gpu names in its release notes.",
    "TensorrtExecutionProvider": "Install TensorRT's libraries and put them on LD_LIBRARY_PATH, or "
    "use CUDAExecutionProvider.",
    "OpenVINOExecutionProvider": "Reinstall the onnxruntime build that brought it.",
}


@dataclass(frozen=True)
class Finding:
    """One examined part; 'absent' is no fault of what is not `needed`."""

    part: str
    state: State
    detail: str = ""
    advice: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Report:
    """All findings, by group in the order of printing."""

    system: dict[str, str]
    groups: dict[str, tuple[Finding, ...]]

    @property
    def healthy(self) -> bool:
        """Whether everything that inspection on a CPU needs is there and works."""
        findings = [finding for group in self.groups.values() for finding in group]
        return not any(f.needed and f.state != "works" for f in findings)

    def as_json(self) -> dict[str, Any]:
        """The report as plain Python."""
        groups = {name: [asdict(f) for f in group] for name, group in self.groups.items()}
        return {"healthy": self.healthy, "system": self.system, **groups}


def examine(bundle: Bundle | None = None) -> Report:
    """Look at every package, run every engine that is installed, and say what to do.

    Args:
        bundle: whose precision and engines decide, too, what of the chain can run it.
    """
    return Report(
        _system(),
        {
            "packages": tuple(map(_package, PACKAGES)),
            "kernels": (_kernels(), _cuda_kernels()),
            "backends": tuple(map(_backend, ("onnxruntime", "openvino", "torch"))),
            "providers": _providers(),
            "engine": _chain(bundle),
            "video": (_video(),),
        },
    )


def _system() -> dict[str, str]:
    from unblemish.runtime.backends.nvidia import find_gpu

    cores = available_cores()
    return {
        "unblemish": __version__,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": str(cores),
        "gpu": str(find_gpu()),
    }


def _package(package: Package) -> Finding:
    version = installed_version(package)
    part, needed = package.distributions[0], not package.extra
    if version is not None:
        return Finding(part, "works", version, needed=needed)
    advice = f"pip install 'unblemish[{package.extra}]'" if package.extra else f"pip install {part}"
    return Finding(part, "absent", package.purpose, advice, needed)


def _kernels() -> Finding:
    name, reason = probe_kernels()
    if reason is not None:
        advice = "Install unblemish again, and report this with the output of: unblemish doctor"
        return Finding(name, "broken", reason, advice, needed=True)
    if name == "cpu":
        from unblemish.kernels.cpu import CpuKernels, instruction_sets

        kernels, sets = CpuKernels(), ", ".join(instruction_sets())
        detail = f"compiled, {kernels.instruction_set} (of {sets}), {kernels.threads} threads"
        return Finding("cpu", "works", detail, needed=True)
    return Finding(name, "works", "not compiled", _COMPILER, needed=True)


def _cuda_kernels() -> Finding:
    """From the cheapest question on: GPU, package, machine code, and a run of every kernel."""
    from unblemish.kernels.cuda.modules import find_nvcc, has_binaries
    from unblemish.runtime.backends.nvidia import find_gpu

    gpu = find_gpu()
    if isinstance(gpu, str):
        return Finding("cuda", "absent", gpu, _GPU)
    if importlib.util.find_spec("pycuda") is None:
        advice = "pip install 'unblemish[cuda]'"
        return Finding("cuda", "absent", "the package pycuda is not installed", advice)
    nvcc = find_nvcc()
    if not has_binaries() and nvcc is None:
        missing = "this install has no compiled CUDA kernels, and nvcc is not found"
        return Finding("cuda", "absent", missing, _NVCC)
    reason = probe_cuda_kernels()
    if reason is not None:
        return Finding("cuda", "broken", reason, _CUDA)
    capability = ".".join(map(str, gpu.capability))
    made = "fat binaries" if has_binaries() else f"compiled here by {nvcc}"
    return Finding("cuda", "works", f"compute capability {capability}, {made}")


def _backend(name: str) -> Finding:
    package = next(p for p in PACKAGES if name in p.distributions)
    version = installed_version(package)
    needed = not package.extra
    if version is None:
        advice = f"pip install 'unblemish[{package.extra}]'"
        return Finding(name, "absent", package.purpose, advice, needed)
    reason = probe_backend(name)
    if reason is None:
        return Finding(name, "works", version, needed=needed)
    return Finding(name, "broken", reason, f"pip install --force-reinstall {name}", needed)


def _providers() -> tuple[Finding, ...]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        reason = f"onnxruntime cannot be imported: {error}"
        return (Finding("onnxruntime", "broken", reason, "pip install onnxruntime", needed=True),)
    names = [name for name in ort.get_available_providers() if name not in _REMOTE]
    return tuple(map(_provider, names))


def _provider(name: str) -> Finding:
    needed = name == "CPUExecutionProvider"
    reason = probe_provider(name)
    if reason is None:
        return Finding(name, "works", needed=needed)
    advice = _PROVIDER.get(name, "Reinstall onnxruntime, or do not use this provider.")
    return Finding(name, "broken", reason, advice, needed)


def _chain(bundle: Bundle | None) -> tuple[Finding, ...]:
    """The chain of `--backend auto`: the first that works is what runs."""
    from unblemish.runtime.backends import CHAIN
    from unblemish.runtime.backends.choose import engines_there, obstacle_of

    obstacles = {name: obstacle_of(name, bundle) for name in CHAIN}
    chosen = next((name for name, obstacle in obstacles.items() if obstacle is None), None)
    links = [_link(name, obstacle, chosen) for name, obstacle in obstacles.items()]
    if bundle is not None and obstacles["tensorrt"] is None:
        links[0] = replace(links[0], detail=f"{engines_there(bundle)}, {links[0].detail}")
    return tuple(links)


def _link(name: str, obstacle: Obstacle | None, chosen: str | None) -> Finding:
    needed = name == "onnxruntime"
    if obstacle is not None:
        state: State = "absent" if obstacle.absent else "broken"
        return Finding(name, state, obstacle.reason, obstacle.advice, needed)
    if name == chosen:
        return Finding(name, "works", "runs with --backend auto", needed=needed)
    return Finding(name, "works", f"stands back for {chosen}", needed=needed)


def _video() -> Finding:
    reason = probe_video()
    if reason is None:
        return Finding("video files", "works")
    return Finding("video files", "absent", reason, "pip install --force-reinstall opencv-python")
