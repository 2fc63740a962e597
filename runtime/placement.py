"""Where a search runs: on the host, or on the GPU that its engines are on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unblemish.bundle.manifest import Preprocess
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.geometry import Geometry

if TYPE_CHECKING:
    from unblemish.runtime.device.engines import DeviceEngines


def place(
    backend: Backend, kernels: Kernels | None, threads: int | None
) -> tuple[DeviceEngines | None, Kernels]:
    """Engines for searches that stay on the GPU, and kernels for what stays on the host.

    Nothing of the device is imported for backends of the host.

    Args:
        kernels: as given by the caller; `CudaKernels` that the engines take are not the host's.
        threads: of kernels of the host.
    """
    engines = None
    if hasattr(backend, "on_device"):
        from unblemish.runtime.device.engines import device_engines

        engines = device_engines(backend, kernels)
    if kernels is None or (engines is not None and kernels is engines.kernels):
        kernels = default_kernels(threads)
    return engines, kernels


def geometry_at(engines: DeviceEngines | None, preprocess: Preprocess) -> Geometry:
    """The way of frames to model images and back: there on the GPU, where the engines are."""
    if engines is None:
        return Geometry(preprocess)
    from unblemish.runtime.device.frames.geometry import DeviceGeometry
    from unblemish.runtime.device.frames.model_images import FramesOnDevice

    return DeviceGeometry(preprocess, FramesOnDevice(preprocess, engines.kernels.device))
