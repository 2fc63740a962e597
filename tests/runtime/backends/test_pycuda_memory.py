"""Device memory by pycuda: what is asked of pycuda, in which order, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unblemish.errors import BackendError, MissingDependencyError

MODULE = "unblemish.runtime.backends.pycuda_memory"


class Driver(ModuleType):
    """A recorded `pycuda.driver`: nothing works before a context is current."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.calls: list[tuple[Any, ...]] = []
        self.current = False
        self.fails: set[str] = set()

    def _call(self, name: str, *arguments: Any, context: bool = True) -> None:
        assert self.current or not context, f"{name} without a current context"
        self.calls.append((name, *arguments))
        if name in self.fails:
            raise self.Error(f"{name} failed: out of memory")

    def init(self) -> None:
        self._call("init", context=False)

    def Device(self, ordinal: int) -> Any:  # noqa: N802
        def push() -> None:
            self.current = True

        context = SimpleNamespace(push=push, pop=lambda: None)
        return SimpleNamespace(
            retain_primary_context=lambda: context, compute_capability=lambda: (8, 7)
        )

    def Stream(self) -> Any:  # noqa: N802
        self._call("Stream")
        return SimpleNamespace(handle=77, synchronize=lambda: self._call("synchronize"))

    def mem_alloc(self, size: int) -> int:
        self._call("mem_alloc", size)
        return 4096

    def pagelocked_empty(self, shape: Any, dtype: Any) -> Any:
        self._call("pagelocked_empty")
        return np.empty(shape, dtype)

    def memcpy_htod_async(self, target: int, source: Any, stream: Any) -> None:
        self._call("to device", target, source.nbytes, stream.handle)

    def memcpy_dtoh_async(self, target: Any, source: int, stream: Any) -> None:
        self._call("to host", target.nbytes, source, stream.handle)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    package = ModuleType("pycuda")
    package.driver = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", made)
    sys.modules.pop(MODULE, None)
    yield made
    sys.modules.pop(MODULE, None)


def memory() -> Any:
    from unblemish.runtime.backends.pycuda_memory import PycudaMemory

    return PycudaMemory()


def test_copies_go_over_one_stream_that_is_not_the_default(driver: Driver) -> None:
    device = memory()
    assert (device.stream, device.capability) == (77, "8.7")
    block = device.allocate(48)
    assert (block.address, block.size) == (4096, 48)
    array = device.host((3, 4), np.dtype("f4"))
    device.upload(block, array)
    device.download(array, block)
    device.synchronise()
    assert driver.calls[2:] == [
        ("mem_alloc", 48), ("pagelocked_empty",), ("to device", 4096, 48, 77),
        ("to host", 48, 4096, 77), ("synchronize",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [("init", "cannot be used"), ("mem_alloc", "48 bytes left"), ("synchronize", "failed while")],
)
def test_failures_are_ours(driver: Driver, call: str, message: str) -> None:
    def use() -> None:
        device = memory()
        device.allocate(48)
        device.synchronise()

    driver.fails.add(call)
    with pytest.raises(BackendError, match=message):
        use()


def test_missing_pycuda_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    sys.modules.pop(MODULE, None)
    with pytest.raises(MissingDependencyError, match=r"unblemish\[cuda\]"):
        memory()
