"""Objects whose calls are checked against TensorRT's signatures, recorded, tied to lifetimes."""

from __future__ import annotations

import enum
import functools
import json
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SIGNATURES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "signatures.json").read_text("utf-8")
)


class ViolationError(AssertionError):
    """The API was used against its rules."""


class World:
    """One version of the library: its table, what was called, and what it should refuse.

    Args:
        refused: operator -> message of the parser.
        broken: every build fails.
        uncapturable: names of engines that hold what cannot be captured.
        models: digest -> ONNX graph that was parsed. model: that of the engine that runs.
        on_execute: called with (engine name, inputs, outputs), arrays over device memory.
        devices: stream -> its memory.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.table = SIGNATURES[version.partition(".")[0]]
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.refused: dict[str, str] = {}
        self.broken = False
        self.uncapturable: set[str] = set()
        self.memory: Any = None
        self.devices: dict[int, Any] = {}
        self.models: dict[str, bytes] = {}
        self.model = b""
        self.on_execute: Any = None
        self.classes: dict[str, type] = {}

    def called(self, owner: str, method: str) -> list[tuple[Any, ...]]:
        """Arguments of every call of a method, in order."""
        return [arguments for o, m, arguments in self.calls if (o, m) == (owner, method)]


class Checked:
    """Base of every class of the double; `world` and `name` are set by `bind`.

    What a subclass implements has to be in the table; what is in the table and not implemented
    cannot be used; what is in neither does not exist in this version.
    """

    world: World
    name_: str

    def _tie(self, **parents: Any) -> None:
        """The object is of no use once one of these has died."""
        object.__setattr__(self, "_parents", {k: weakref.ref(v) for k, v in parents.items()})

    def _alive(self, what: str) -> None:
        for kind, parent in getattr(self, "_parents", {}).items():
            if parent() is None:
                raise ViolationError(f"{self.name_}.{what} after its {kind} died")

    def __getattr__(self, name: str) -> Any:
        table = self.world.table[self.name_]
        if name in table.get("attributes", ()) or name in table.get("methods", {}):
            raise ViolationError(f"the double does not know {self.name_}.{name}: add its rules")
        raise AttributeError(f"TensorRT {self.world.version} has no {self.name_}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and type(self) is self.world.classes[self.name_]:
            if name not in self.world.table[self.name_].get("writable", ()):
                raise AttributeError(f"{self.name_}.{name} cannot be set in {self.world.version}")
            self._alive(name)
            self.world.calls.append((self.name_, f"{name}=", _kept([value])))
            self._on_set(name, value)
        object.__setattr__(self, name, value)

    def _on_set(self, name: str, value: Any) -> None:
        """Rules of an attribute, by subclasses."""


def bind(world: World, name: str, implementation: type) -> type:
    """The class of one version: methods it lacks are removed, the others are checked."""
    table = world.table[name].get("methods", {})
    body: dict[str, Any] = {"world": world, "name_": name}
    for attribute, value in vars(implementation).items():
        if attribute.startswith("_") or not callable(value):
            continue
        if attribute not in table:
            body[attribute] = property(functools.partial(_missing, world, name, attribute))
        else:
            body[attribute] = _recorded(world, name, attribute, value, table[attribute])
    body["__init__"] = _constructed(world, name, implementation, table.get("__init__"))
    made = type(name, (implementation,), body)
    world.classes[name] = made
    return made


def _kept(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """Arguments as they are recorded: of an object its kind, or the record would keep it alive."""
    return tuple(a.name_ if isinstance(a, Checked) and a.name_ != "Dims" else a for a in arguments)


def _missing(world: World, owner: str, name: str, _: Any) -> Any:
    raise AttributeError(f"TensorRT {world.version} has no {owner}.{name}")


def _constructed(world: World, name: str, implementation: type, signatures: Any) -> Any:
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if signatures is not None:
            _match(world, name, "__init__", signatures, args, kwargs)
        world.calls.append((name, "__init__", _kept(args)))
        implementation.__init__(self, *args, **kwargs)

    return construct


def _recorded(world: World, owner: str, method: str, call: Any, signatures: Any) -> Any:
    @functools.wraps(call)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._alive(method)
        bound = _match(world, owner, method, signatures, args, kwargs)
        world.calls.append((owner, method, _kept(bound.values())))
        return call(self, **bound)

    return run


def _match(
    world: World, owner: str, method: str, signatures: Any, args: Any, kwargs: Any
) -> dict[str, Any]:
    """Arguments by name, of the first signature that takes them."""
    for signature in signatures:
        names = [name for name, _, _ in signature]
        if len(args) > len(names):
            continue
        bound = dict(zip(names, args, strict=False))
        if set(bound) & set(kwargs) or set(kwargs) - set(names):
            continue
        bound |= kwargs
        if all(name in bound or not needed for name, _, needed in signature) and all(
            _is(world, bound[name], kind) for name, kind, _ in signature if name in bound
        ):
            return bound
    raise TypeError(
        f"{owner}.{method} of TensorRT {world.version} takes {signatures}, got {args} {kwargs}"
    )


def _is(world: World, value: Any, kind: str) -> bool:
    if kind == "typing.SupportsInt":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "typing_extensions.Buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    plain = {"str": str, "builtins.bool": bool, "tuple": tuple, "list": list}
    if kind in plain:
        return isinstance(value, plain[kind])
    return isinstance(value, world.classes[kind]) if kind in world.classes else True


def enumeration(world: World, name: str) -> type[enum.IntEnum]:
    """The members of one version."""
    made = enum.IntEnum(name, {m: i for i, m in enumerate(world.table[name]["members"])})  # type: ignore[misc]
    world.classes[name] = made
    return made
