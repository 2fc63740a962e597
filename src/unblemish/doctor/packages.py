"""The packages that unblemish can use, and the extra that brings each."""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple


class Package(NamedTuple):
    """A distribution and its purpose; `extra` is '' for what every install has."""

    distributions: tuple[str, ...]  # any one of them will do
    extra: str
    purpose: str


PACKAGES = (
    Package(("numpy",), "", "arrays"),
    Package(("onnxruntime", "onnxruntime-gpu"), "", "the engine of the graphs"),
    Package(("opencv-python", "opencv-python-headless", "opencv-contrib-python"), "", "images"),
    Package(("pydantic",), "", "the manifest of bundles"),
    Package(("typer",), "", "the command line"),
    Package(("rich",), "", "progress bars"),
    Package(("jinja2",), "report", "HTML reports"),
    Package(("matplotlib",), "report", "plots in reports"),
    Package(("onnx",), "onnx", "export of ONNX models"),
    Package(("networkx",), "onnx", "choosing what gradients keep"),
    Package(("torch",), "train", "training, and export of checkpoints"),
    Package(("onnxscript",), "train", "export of checkpoints"),
    Package(("safetensors",), "train", "reading safetensors checkpoints"),
    Package(("scikit-learn",), "fit", "the mixture of colours of detectors"),
    Package(("openvino",), "openvino", "a second engine for CPUs"),
    Package(("pycuda",), "cuda", "kernels on NVIDIA GPUs"),
    Package(("tensorrt",), "tensorrt", "engines for NVIDIA GPUs"),
)


def installed_version(package: Package) -> str | None:
    """Version of the first of the package's distributions that is installed, or None."""
    for name in package.distributions:
        version = _version(name)
        if version is not None:
            return version
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
