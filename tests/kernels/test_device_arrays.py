"""Arrays of other libraries used in place, and ours by them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_driver import EmulatedDriver

from unblemish.errors import BackendError, ShapeError
from unblemish.kernels import dlpack
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray, contiguous_strides, from_foreign, overlap


@pytest.fixture
def driver(make_driver: Callable[..., EmulatedDriver]) -> EmulatedDriver:
    return make_driver()


@pytest.fixture
def on_device(driver: EmulatedDriver) -> CudaKernels:
    return CudaKernels(driver=driver)


class Foreign:
    """An array of a library that has the CUDA array interface alone."""

    def __init__(self, array: DeviceArray, **changed: Any) -> None:
        described = {**array.__cuda_array_interface__, "stream": None, **changed}
        self.__cuda_array_interface__ = described
        self.owner = array


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.uint8])
@pytest.mark.parametrize("shape", [(), (7,), (3, 1, 5), (2, 3, 4, 5), (0, 4)])
def test_numpy_and_torch_see_our_memory(
    on_device: CudaKernels, driver: EmulatedDriver, shape: tuple[int, ...], dtype: Any
) -> None:
    import torch

    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    array = on_device.device.to_device(values)
    seen, tensor = np.from_dlpack(array), torch.from_dlpack(array)
    np.testing.assert_array_equal(seen, values)
    np.testing.assert_array_equal(tensor.numpy(), values)
    if values.size:
        tensor.view(-1)[0] = 9
        assert seen.reshape(-1)[0] == 9  # the same memory
        assert on_device.device.to_host(array).reshape(-1)[0] == 9
    assert driver.led  # whoever takes it waits for our stream
    assert not driver.followed


def test_memory_handed_over_lives_until_it_is_given_back(
    on_device: CudaKernels, driver: EmulatedDriver
) -> None:
    before = dlpack.lent()
    seen = np.from_dlpack(on_device.device.to_device(np.arange(6, dtype=np.float32)))
    gc.collect()
    assert dlpack.lent() == before + 1
    np.testing.assert_array_equal(seen, np.arange(6))
    live = len(driver.live)
    del seen
    gc.collect()
    assert dlpack.lent() == before
    assert len(driver.live) == live - 1


def test_a_capsule_that_nobody_takes_gives_the_memory_back(on_device: CudaKernels) -> None:
    before = dlpack.lent()
    capsule = on_device.device.to_device(np.zeros(3, np.float32)).__dlpack__()
    assert dlpack.lent() == before + 1
    del capsule
    gc.collect()
    assert dlpack.lent() == before


def test_capsules_of_other_libraries_are_read_as_they_are() -> None:
    import torch

    values = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)[:, 1:, ::2]
    found = dlpack.describe(values.__dlpack__())
    assert found.pointer == values.data_ptr()
    assert found.shape == (2, 2, 2)
    assert found.strides == (96, 32, 16)
    assert found.dtype == np.float64
    assert found.device == (1, 0)
    used = torch.zeros(3).__dlpack__()
    torch.from_dlpack(used)
    with pytest.raises(ShapeError, match="used before"):
        dlpack.describe(used)
    with pytest.raises(ShapeError, match="type code"):
        dlpack.describe(torch.zeros(3, dtype=torch.complex64).__dlpack__())


def test_foreign_arrays_are_used_in_place(on_device: CudaKernels, driver: EmulatedDriver) -> None:
    device = on_device.device
    x = device.to_device(np.arange(1, 11, dtype=np.float32).reshape(2, 5))
    sums = device.empty((2,), np.float64), device.empty((2,), np.float64)
    waits = driver.waits
    on_device.norms(Foreign(x), squared=Foreign(sums[0]), largest=sums[1])
    assert driver.waits == waits  # nothing waited
    np.testing.assert_array_equal(device.to_host(sums[0]), [55, 330])
    np.testing.assert_array_equal(device.to_host(sums[1]), [5, 10])


def test_our_stream_waits_for_the_one_that_wrote(
    on_device: CudaKernels, driver: EmulatedDriver
) -> None:
    x = on_device.device.to_device(np.ones((2, 5), np.float32))
    for stream, waited in ((None, []), (driver.stream, []), (1, [1]), (77, [77])):
        driver.followed.clear()
        on_device.all_finite(Foreign(x, stream=stream))
        assert driver.followed == waited


def test_a_producer_by_dlpack_is_told_our_stream(
    on_device: CudaKernels, driver: EmulatedDriver
) -> None:
    x = on_device.device.to_device(np.full((2, 5), 2, np.float32))
    told = []

    class Producer:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, *, stream: int) -> Any:
            told.append(stream)
            return x.__dlpack__(stream=-1)

    assert on_device.all_finite(Producer())
    assert told == [driver.stream]


def test_arrays_are_handed_over_where_they_are_or_not_at_all(on_device: CudaKernels) -> None:
    array = on_device.device.to_device(np.ones(3, np.float32))
    for asked in ({"copy": True}, {"dl_device": (2, 7)}):
        with pytest.raises(BufferError, match="not copied"):
            array.__dlpack__(**asked)
    readonly = DeviceArray(array.pointer, (3,), array.dtype, readonly=True)
    with pytest.raises(BufferError, match="read-only"):
        readonly.__dlpack__()
    assert array.__dlpack__(dl_device=array.device, copy=False) is not None


def test_a_producer_that_will_not_hand_over_is_named(on_device: CudaKernels) -> None:
    class Stubborn:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("it requires gradients")

    with pytest.raises(ShapeError, match="Stubborn cannot be seen by DLPack: it requires"):
        on_device.all_finite(Stubborn())


def test_host_arrays_are_no_device_arrays() -> None:
    import torch

    for value in (np.zeros(3), torch.zeros(3), [1.0], None):
        assert from_foreign(value, 0, lambda stream: None) is None


def _norms(kernels: CudaKernels, x: Any) -> None:
    kernels.norms(x, squared=np.empty(2), largest=np.empty(2))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"typestr": "<f8"}, "must be float32, found float64"),
        ({"strides": (4, 8)}, "C-contiguous"),
        ({"shape": (0, 5)}, "every size"),
    ],
)
def test_device_arrays_that_do_not_fit_are_refused(
    on_device: CudaKernels, changed: dict[str, Any], said: str
) -> None:
    x = on_device.device.to_device(np.ones((2, 5), np.float32))
    with pytest.raises(ShapeError, match=said):
        _norms(on_device, Foreign(x, **changed))


def test_outputs_on_the_device_must_have_memory_of_their_own(on_device: CudaKernels) -> None:
    device = on_device.device
    p = device.to_device(np.ones(8, np.float32))
    later = DeviceArray(p.pointer + 4, (8,), p.dtype, device=p.device)
    others = [device.zeros((8,)) for _ in range(2)]
    with pytest.raises(ShapeError, match="shares memory"):
        on_device.adam(p, later, *others, step=1, lr=0.1)
    readonly = DeviceArray(p.pointer, p.shape, p.dtype, readonly=True)
    with pytest.raises(ShapeError, match="read-only"):
        on_device.adam(readonly, others[0], *others, step=1, lr=0.1)


def test_a_kernel_refuses_arrays_of_another_dtype(on_device: CudaKernels) -> None:
    device = on_device.device
    x, out = device.zeros((4,), np.float64), device.zeros((1,), np.int32)
    with pytest.raises(BackendError, match="'x' must be float32"):
        device.launch("all_finite", (1, 1), x=x, finite=out, count=4)
    with pytest.raises(BackendError, match="needs 'finite'"):
        device.launch("all_finite", (1, 1), x=None, count=4)


def test_spans_and_strides() -> None:
    a = DeviceArray(1000, (2, 3), np.dtype(np.float32))
    assert a.strides == contiguous_strides((2, 3), 4) == (12, 4)
    assert overlap(a, DeviceArray(1020, (1,), np.dtype(np.float32)))
    assert not overlap(a, DeviceArray(1024, (1,), np.dtype(np.float32)))
    assert not overlap(a, DeviceArray(1000, (0,), np.dtype(np.float32)))
    backwards = DeviceArray(1020, (6,), np.dtype(np.float32), (-4,))
    assert overlap(a, backwards)
    assert not backwards.flags.c_contiguous
    assert DeviceArray(0, (1, 3), np.dtype(np.float32), (99, 4)).flags.c_contiguous


def test_scratch_keeps_its_place_until_it_must_grow(
    on_device: CudaKernels, driver: EmulatedDriver
) -> None:
    device = on_device.device
    first = device.scratch("room", (10,), np.float32)
    assert device.scratch("room", (3,), np.float64).pointer == first.pointer
    larger = device.scratch("room", (11,), np.float32)
    assert larger.pointer != first.pointer
    driver.bytes_at(first.pointer, 40)  # a graph may hold it: it lives
    assert device.scratch("room", (20,), np.float32).pointer == larger.pointer


@pytest.mark.gpu
def test_tensors_of_torch_on_the_gpu_are_used_in_place() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
    kernels = CudaKernels()
    p = torch.linspace(-1, 1, 1000, device="cuda")
    zeros = [torch.zeros_like(p) for _ in range(2)]
    kernels.adam(p, torch.ones_like(p), *zeros, step=1, lr=0.5)
    kernels.synchronise()
    torch.testing.assert_close(p.cpu(), torch.linspace(-1, 1, 1000) - 0.5)
    ours = kernels.device.to_device(np.arange(6, dtype=np.float32))
    assert torch.from_dlpack(ours).sum().item() == 15
    assert torch.as_tensor(ours, device="cuda").data_ptr() == ours.pointer
