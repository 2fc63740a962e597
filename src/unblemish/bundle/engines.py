"""Which engine of a bundle belongs to a graph and a device, and whether it may be loaded.

An engine file is code: only one that the manifest vouches for by its hash is read.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unblemish.bundle.manifest import EngineRecord, GraphRole, Manifest
from unblemish.bundle.store import MANIFEST, Bundle
from unblemish.errors import BundleError

FOLDER = "engines"
Size = tuple[int, int]


@dataclass(frozen=True)
class Device:
    """What an engine is locked to.

    Args:
        tensorrt: full version of the library, such as 10.16.1.11.
        capability: compute capability of the chip, such as 8.7.
        system: operating system and processor, such as linux-aarch64.
    """

    tensorrt: str
    capability: str
    system: str

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of TensorRT."""
        major, minor = self.tensorrt.split(".")[:2]
        return int(major), int(minor)

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt}, compute capability {self.capability}, {self.system}"


def this_system() -> str:
    """Operating system and processor of this machine, as `Device.system` has them."""
    return f"{sys.platform}-{platform.machine()}".lower()


def engine_file(role: str, digest: str, device: Device, size: Size | None = None) -> str:
    """Name inside the bundle: graph, size, hash, TensorRT, compute capability, system."""
    sides = "" if size is None else f"-{size[0]}x{size[1]}"
    return f"{FOLDER}/{role}{sides}-{digest[:16]}-{_tag(device)}.engine"


def timings_file(device: Device) -> str:
    """Name inside the bundle of what the builder learned of a device's kernels."""
    return f"{FOLDER}/timings-{_tag(device)}.cache"


def _tag(device: Device) -> str:
    chip = device.capability.replace(".", "")
    return f"trt{device.tensorrt}-sm{chip}-{device.system}"


def graph_digest(manifest: Manifest, role: GraphRole) -> str:
    """SHA-256 over a graph, its other half and the weights beside them, as the manifest has them.

    A forward graph and its way back are made into engines together, so each counts for both.
    """
    stem, _, way = role.rpartition("_")
    roles = (
        [role] if way not in ("forward", "backward") else [f"{stem}_forward", f"{stem}_backward"]
    )
    graphs = {g.file for name, g in manifest.graphs.items() if name in roles}
    folders = {Path(file).parent for file in graphs}
    every = {g.file for g in manifest.graphs.values()}
    beside = {n for n in manifest.files if Path(n).parent in folders and n not in every}
    parts = sorted(f"{name} {manifest.files[name].sha256}\n" for name in graphs | beside)
    return hashlib.sha256("".join([f"{role}\n", *parts]).encode()).hexdigest()


def bundle_of(graph: Path) -> tuple[Bundle, GraphRole]:
    """The bundle that a graph file lies in, and the graph's role.

    Raises: BundleError where it lies in none, or the manifest does not name it.
    """
    for folder in graph.parents:
        if (folder / MANIFEST).is_file():
            bundle = Bundle.open(folder, verify=False)
            name = graph.relative_to(folder).as_posix()
            for role, record in bundle.manifest.graphs.items():
                if record.file == name:
                    return bundle, role
            raise BundleError(f"bundle {folder}: the manifest names no graph '{name}'.")
    raise BundleError(f"{graph} lies in no bundle, and engines belong to bundles.")


def find_engines(
    manifest: Manifest, roles: Sequence[GraphRole], device: Device
) -> list[tuple[EngineRecord, ...]]:
    """For every size that all these graphs have engines for, those that this device can load.

    An engine that was made for the device is taken before others that it can load.
    """
    found: dict[GraphRole, dict[Size | None, EngineRecord]] = {role: {} for role in roles}
    digests = {role: graph_digest(manifest, role) for role in roles}
    for record in sorted(manifest.engines, key=lambda r: _nearness(r, device)):
        if digests.get(record.role) == record.graph_sha256 and _loads(record, device):
            found[record.role][record.size] = record
    sizes = [size for size in found[roles[0]] if all(size in found[role] for role in roles)]
    return [tuple(found[role][size] for role in roles) for size in sizes]


def why_none(manifest: Manifest, roles: Sequence[GraphRole], device: Device) -> str:
    """What engines there are of these graphs instead, or '' where they have some for the device."""
    missing = [role for role in roles if not find_engines(manifest, [role], device)]
    made = [record for record in manifest.engines if record.role in missing]
    if not missing:
        return ""
    if any(_loads(record, device) for record in made):
        return "those for it are of graphs that have changed since"
    names = sorted({str(Device(r.tensorrt, r.capability, r.system)) for r in made})
    return f"there are some of {' and '.join(names)}" if names else "there are none"


def _nearness(record: EngineRecord, device: Device) -> tuple[bool, bool]:
    return record.tensorrt == device.tensorrt, record.capability == device.capability


def _loads(record: EngineRecord, device: Device) -> bool:
    made = Device(record.tensorrt, record.capability, record.system)
    same_version = made.tensorrt == device.tensorrt or (
        record.version_compatible
        and made.version[0] == device.version[0]
        and _numbers(made.tensorrt) <= _numbers(device.tensorrt)
    )
    same_chip = made.capability == device.capability or (
        record.hardware == "ampere+"
        and min(map(_numbers, (made.capability, device.capability))) >= (8,)
    )
    return same_version and same_chip and made.system == device.system


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def read_engine(bundle: Bundle, record: EngineRecord) -> bytes:
    """Content of an engine file, checked in memory: what is hashed is what will be loaded.

    Raises: BundleError where the manifest has no record of it, or it is missing or changed.
    """
    path = bundle.file(record.file)
    stated = bundle.manifest.files[record.file]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"bundle {bundle.path}: engine '{record.file}' cannot be read: "
            f"{error.strerror or error}. Build it again: unblemish build-engines {bundle.path}"
        ) from error
    if len(content) != stated.bytes or hashlib.sha256(content).hexdigest() != stated.sha256:
        raise BundleError(
            f"bundle {bundle.path}: engine '{record.file}' differs from the manifest, so it is not "
            f"loaded: an engine is code. Build it again: unblemish build-engines {bundle.path}"
        )
    return content
