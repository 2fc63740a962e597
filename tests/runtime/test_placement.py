"""Where a search runs, and which kernels are left to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from emulated_backend import EmulatedBackend

from unblemish.kernels import default_kernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.placement import place


@pytest.fixture
def cuda(make_driver: Callable[..., Any]) -> CudaKernels:
    return CudaKernels(driver=make_driver())


def test_engines_of_the_gpu_leave_the_host_its_own_kernels(cuda: CudaKernels) -> None:
    engines, kernels = place(EmulatedBackend(), cuda, 1)
    assert engines is not None
    assert engines.kernels is cuda
    assert type(kernels) is type(default_kernels(1))


def test_kernels_that_were_asked_for_keep_the_search_on_the_host() -> None:
    asked = NumpyKernels()
    assert place(EmulatedBackend(), asked, 1) == (None, asked)


def test_engines_of_the_host_work_with_any_kernels(cuda: CudaKernels) -> None:
    assert place(OrtBackend(1), cuda, 1) == (None, cuda)
    engines, kernels = place(OrtBackend(1), None, 1)
    assert engines is None
    assert type(kernels) is type(default_kernels(1))
