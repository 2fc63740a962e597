"""The running half of the double: runtime, engine, context, and the device memory beside them."""

from __future__ import annotations

import json
import math
import weakref
from typing import Any

import numpy as np
from building import PLAN, _logger, fail
from checked import Checked, ViolationError, World

ITEM = {"FLOAT": np.dtype("f4"), "HALF": np.dtype("f2"), "BF16": np.dtype("V2"),
        "INT8": np.dtype("i1"), "UINT8": np.dtype("u1"), "INT32": np.dtype("i4"),
        "INT64": np.dtype("i8"), "BOOL": np.dtype("?")}  # fmt: skip


class Runtime(Checked):
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self._log = _logger(logger)
        self._tie(logger=logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if not bytes(serialized_engine).startswith(PLAN):
            fail(self, self._log, "the magic tag of the plan does not match")
            return None
        plan = json.loads(bytes(serialized_engine)[len(PLAN) :])
        compatible = "VERSION_COMPATIBLE" in plan["flags"]
        if compatible and not self.engine_host_code_allowed:
            fail(self, self._log, "the plan brings host code, which is not allowed")
            return None
        if plan["version"] != self.world.version and not compatible:
            fail(self, self._log, f"the plan is of version {plan['version']}")
            return None
        made = self.world.classes["ICudaEngine"](plan, self._log)
        made._tie(runtime=self)
        return made


class ICudaEngine(Checked):
    def __init__(self, plan: dict[str, Any], log: Any) -> None:
        self._plan, self._log = plan, log
        self._tensors = {t["name"]: t for t in plan["tensors"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def _of(self, name: str) -> dict[str, Any]:
        if name not in self._tensors:
            raise ViolationError(f"the engine has no tensor '{name}'")
        return self._tensors[name]

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.world.classes["TensorIOMode"][self._of(name)["mode"]]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.world.classes["DataType"][self._of(name)["dtype"]]

    def get_tensor_location(self, name: str) -> Any:
        self._of(name)
        return self.world.classes["TensorLocation"].DEVICE

    def get_tensor_shape(self, name: str) -> Any:
        dims = self._of(name)["dims"]
        return self.world.classes["Dims"](-1 if isinstance(d, str) else d for d in dims)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        if self._of(name)["mode"] != "INPUT" or profile_index != 0:
            raise ViolationError(f"no profile {profile_index} of '{name}'")
        if name not in self._plan["ranges"]:
            raise ViolationError(f"'{name}' is of fixed shape, and has no profile")
        return [self.world.classes["Dims"](s) for s in self._plan["ranges"][name]]

    @property
    def device_memory_size_v2(self) -> int:
        return int(self._plan["scratch"])

    def create_execution_context(self, strategy: Any = None) -> Any:
        strategies = self.world.classes["ExecutionContextAllocationStrategy"]
        managed = strategy is not None and strategy == strategies["USER_MANAGED"]
        made = self.world.classes["IExecutionContext"](self._plan, self._log, managed)
        made._tie(engine=self)
        return made


class IExecutionContext(Checked):
    def __init__(self, plan: dict[str, Any], log: Any, managed: bool) -> None:
        self._plan, self._log, self._managed = plan, log, managed
        self._tensors = {t["name"]: t for t in plan["tensors"]}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._needed = int(plan["scratch"])  # as for the largest shapes, until it is asked
        self._warm = False  # it ran since a shape was changed
        self._captured = False

    def _open(self, what: str) -> None:
        if self._captured:
            raise ViolationError(f"{what} after the context was captured: a graph holds it")

    def update_device_memory_size_for_shapes(self) -> int:
        self._open("update_device_memory_size_for_shapes")
        if not self._managed:
            raise ViolationError("the context manages its memory itself")
        self._symbols()  # all shapes are set
        least = [
            math.prod(self._shapes[name]) / math.prod(most)
            for name, (_, _, most) in self._plan["ranges"].items()
        ]
        self._needed = math.ceil(self._plan["scratch"] * max(least, default=1))
        return self._needed

    def set_device_memory(self, memory: int, size: int) -> None:
        self._open("set_device_memory")
        if not self._managed:
            raise ViolationError("the context manages its memory itself")
        if memory % 256 or size < self._needed:
            raise ViolationError(f"{size} bytes at {memory:#x} do not do for the context")
        self._scratch = memory, size

    def _input(self, name: str) -> dict[str, Any]:
        tensor = self._tensors.get(name)
        if tensor is None or tensor["mode"] != "INPUT":
            raise ViolationError(f"the engine has no input '{name}'")
        return tensor

    def set_input_shape(self, name: str, shape: Any) -> bool:
        dims, shape = self._input(name)["dims"], tuple(shape)
        self._open("set_input_shape")
        least, _, most = self._plan["ranges"].get(name, (dims, dims, dims))
        if len(shape) != len(dims) or not all(
            low <= d <= high for low, d, high in zip(least, shape, most, strict=True)
        ):
            return False
        if self._shapes.get(name) != shape:
            self._warm, self._needed = False, int(self._plan["scratch"])
        self._shapes[name] = shape
        return True

    def _symbols(self) -> dict[str, int]:
        symbols: dict[str, int] = {}
        for name, tensor in self._tensors.items():
            if tensor["mode"] == "INPUT":
                if name not in self._shapes and any(isinstance(d, str) for d in tensor["dims"]):
                    raise ViolationError(f"the shape of input '{name}' was not set")
                shape = self._shapes.get(name, tuple(tensor["dims"]))
                for dim, length in zip(tensor["dims"], shape, strict=True):
                    if isinstance(dim, str) and symbols.setdefault(dim, length) != length:
                        raise ViolationError(f"'{dim}' is {symbols[dim]} and {length} at once")
        return symbols

    def get_tensor_shape(self, name: str) -> Any:
        symbols = self._symbols()
        dims = self._tensors[name]["dims"]
        return self.world.classes["Dims"](
            symbols.get(d, -1) if isinstance(d, str) else d for d in dims
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._tensors:
            raise ViolationError(f"the engine has no tensor '{name}'")
        if memory % 256:
            raise ViolationError(f"the address of '{name}' is not aligned to 256 bytes")
        self._open("set_tensor_address")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self.world.devices.get(stream_handle)
        if not stream_handle or device is None:
            raise ViolationError(f"executed on stream {stream_handle}, which is not ours")
        places = {
            name: (t["mode"], self._address(name), self._shape(name), ITEM[t["dtype"]])
            for name, t in self._tensors.items()
        }
        for name, (mode, address, shape, dtype) in places.items():
            device.view(address, shape, dtype, name)
            if mode == "INPUT" and not device.written(address):
                raise ViolationError(f"input '{name}' was executed on before anything filled it")
        if self._managed and (self._scratch or (0, 0))[1] < self._needed:
            raise ViolationError("executed before it was given the memory for its shapes")
        if not device.capturing:
            self._warm = True
        elif self._plan["name"] in self.world.uncapturable:
            fail(self, self._log, "an operation is not permitted while the stream is capturing")
            return False
        elif not self._warm:
            raise ViolationError("captured before it ran once with these shapes")
        else:
            self._captured = True
        for mode, address, _, _ in places.values():
            if mode == "OUTPUT":
                device.mark(address)
        device.enqueue(self._work(device, places))
        return True

    def _address(self, name: str) -> int:
        if name not in self._addresses:
            raise ViolationError(f"the address of '{name}' was not set")
        return self._addresses[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.get_tensor_shape(name)._shape)

    def _work(self, device: Any, places: dict[str, Any]) -> Any:
        """What the stream does; as recorded in a graph: shapes and addresses of now."""
        world, plan, scratch, me = self.world, self._plan, self._scratch, weakref.ref(self)

        def run() -> None:
            if me() is None:
                raise ViolationError(f"engine '{plan['name']}' ran after its context died")
            views: dict[str, dict[str, Any]] = {"INPUT": {}, "OUTPUT": {}}
            for name, (mode, *place) in places.items():
                views[mode][name] = device.view(*place, name)
            if scratch is not None:
                device.view(scratch[0], (scratch[1],), np.dtype("u1"), "scratch")[...] = 0xAB
            if world.on_execute is not None:
                world.model = world.models[plan["model"]]
                world.on_execute(plan["name"], views["INPUT"], views["OUTPUT"])

        return run


class Block:
    """An allocation of the double; its address is of no use once the object is gone."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


class Memory:
    """A `DeviceMemory` whose copies happen as late as a device may let them happen."""

    stream = 7001
    capability = "8.7"
    capturing = False

    def __init__(self, world: World) -> None:
        world.memory = world.devices[self.stream] = self
        self._blocks: dict[int, np.ndarray[Any, Any]] = {}
        self._filled: set[int] = set()
        self._pinned: list[np.ndarray[Any, Any]] = []
        self._begun: list[Any] = []
        self._next = 1 << 20
        self.allocated: list[int] = []

    def allocate(self, size: int) -> Block:
        address = self._next
        self._next += -(-size // 256) * 256 + 256
        self._blocks[address] = np.full(size, 0xFF, np.uint8)
        self.allocated.append(size)
        block = Block(address, size)
        weakref.finalize(block, self._blocks.pop, address)
        return block

    def host(self, shape: tuple[int, ...], dtype: Any) -> Any:
        array = np.full(shape, 1, dtype) if dtype.kind == "V" else np.full(shape, 7, dtype)
        self._pinned.append(array)
        return array

    def _locked(self, array: Any) -> None:
        if not any(array is pinned for pinned in self._pinned):
            raise ViolationError("a copy of memory that is not page-locked")

    def upload(self, block: Block, array: Any) -> None:
        self._locked(array)
        if array.nbytes > block.size:
            raise ViolationError(f"{array.nbytes} bytes were copied into {block.size}")
        self._begun.append((self._blocks[block.address], array, True))
        self._filled.add(block.address)

    def download(self, array: Any, block: Block) -> None:
        self._locked(array)
        if block.address not in self._filled:
            raise ViolationError("memory was copied out that nothing had filled")
        if array.nbytes > block.size:
            raise ViolationError(f"{array.nbytes} bytes were copied out of {block.size}")
        self._begun.append((self._blocks[block.address], array, False))

    def enqueue(self, work: Any) -> None:
        """Run an engine behind what was begun."""
        self.flush()
        work()

    def flush(self) -> None:
        """Let happen what was begun."""
        for device, host, inward in self._begun:
            flat = host.reshape(-1).view(np.uint8)
            if inward:
                device[: flat.size] = flat
            else:
                flat[...] = device[: flat.size]
        self._begun.clear()

    def synchronise(self) -> None:
        self.flush()

    def view(self, address: int, shape: tuple[int, ...], dtype: Any, name: str) -> Any:
        if address not in self._blocks:
            raise ViolationError(f"'{name}' lies in memory that was given back")
        size = math.prod(shape) * dtype.itemsize
        block = self._blocks[address]
        if size > block.size:
            raise ViolationError(f"'{name}' needs {size} bytes, its memory has {block.size}")
        return block[:size].view(dtype).reshape(shape)

    def written(self, address: int) -> bool:
        return address in self._filled

    def mark(self, address: int) -> None:
        self._filled.add(address)


class DriverMemory:
    """The memory and the stream of a double of the CUDA driver, for engines on them."""

    def __init__(self, world: World, driver: Any) -> None:
        self._driver = driver
        self.enqueue = driver.enqueue
        world.devices[driver.stream] = self

    @property
    def capturing(self) -> bool:
        return bool(self._driver.capturing)

    def view(self, address: int, shape: tuple[int, ...], dtype: Any, name: str) -> Any:
        try:
            raw = self._driver.bytes_at(address, math.prod(shape) * dtype.itemsize)
        except AssertionError as error:
            raise ViolationError(f"'{name}': {error}") from error
        return raw.view(dtype).reshape(shape)

    def written(self, address: int) -> bool:
        return True  # the driver's memory is NaN where nothing has written

    def mark(self, address: int) -> None:
        """Nothing to remember."""
