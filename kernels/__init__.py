"""Everything between the network passes: fused kernels behind one `Kernels` protocol."""

from __future__ import annotations

import warnings

from unblemish.kernels.api import Kernels

__all__ = ["Kernels", "default_kernels"]

_warned = False


def default_kernels(threads: int | None = None) -> Kernels:
    """Return the fastest kernels of this install for the CPU: the compiled ones, else NumPy's.

    Also where there is a GPU: searches that stay on the host run on these. Those on the device are
    given `CudaKernels`.

    Args:
        threads: of the compiled ones, None for all cores.

    Warns: RuntimeWarning, once per process, where the compiled kernels are missing.
    """
    try:
        from unblemish.kernels.cpu import CpuKernels
    except ImportError as error:
        _warn_once(error)
        from unblemish.kernels.fallback import NumpyKernels

        return NumpyKernels()
    return CpuKernels(threads)


def _warn_once(reason: ImportError) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        "unblemish runs without its compiled CPU kernels: the steps between the network passes use "
        "NumPy, which gives the same results but takes several times longer for them. To build the "
        "compiled ones, install a C++20 compiler (Debian/Ubuntu: apt install g++), then install "
        "unblemish again with pip's options --force-reinstall --no-deps --no-cache-dir. "
        f"Reason: {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
