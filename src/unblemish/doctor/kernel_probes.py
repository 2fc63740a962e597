"""One small run of every kernel, compared with the float64 reference."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from unblemish.doctor.kernel_samples import methods, run
from unblemish.kernels import Kernels

# float32 on numbers near 1, and weights in half precision; a wrong kernel is off by far more.
_TOLERANCE = 1e-3


def probe_kernels() -> tuple[str, str | None]:
    """Name of the kernels in use, and None where they work, else the reason."""
    from unblemish.kernels import default_kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        kernels = default_kernels()
    try:
        wrong = differing(kernels) + ([] if _coreset() else ["k_centre"])
    except Exception as error:  # a library of another version may fail with whatever it likes
        return kernels.name, f"{type(error).__name__}: {error}"
    return kernels.name, f"wrong numbers from {', '.join(wrong)}" if wrong else None


def probe_cuda_kernels() -> str | None:
    """None where the CUDA kernels work, else the reason."""
    try:
        wrong = differing(_cuda_kernels())
    except Exception as error:  # as above
        return str(error) or type(error).__name__
    return f"wrong numbers from {', '.join(wrong)}" if wrong else None


def differing(kernels: Kernels) -> list[str]:
    """The methods whose results are not those of the reference."""
    from unblemish.kernels.reference import ReferenceKernels

    reference = ReferenceKernels()
    return [name for name in methods() if not _alike(run(kernels, name), run(reference, name))]


def _alike(found: list[NDArray[np.generic]], wanted: list[NDArray[np.generic]]) -> bool:
    return all(
        np.allclose(a.astype(float), b.astype(float), rtol=_TOLERANCE, atol=_TOLERANCE)
        for a, b in zip(found, wanted, strict=True)
    )


def _cuda_kernels() -> Kernels:
    from unblemish.kernels.cuda import CudaKernels

    return CudaKernels()


def _coreset() -> bool:
    """From 0 on, 5 is the farthest of 0, 1, 5 and 3, and then 3."""
    from unblemish.kernels.k_centre import k_centre

    rows = np.array([[0], [1], [5], [3]], np.float32)
    return bool((k_centre(rows, 0, 1).choose(2) == [2, 3]).all())
