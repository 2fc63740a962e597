"""Read, verify and write bundles. Reading trusts nothing that the manifest does not vouch for."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unblemish.bundle.manifest import SCHEMA_VERSION, FileRecord, GraphRole, Manifest
from unblemish.errors import BundleError, ConfigError
from unblemish.files import sha256_of, write_atomic

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its checked manifest."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open a bundle folder; with `verify`, compare every file with its size and SHA-256.

        Raises: BundleError where the folder, the manifest or a file is missing, changed or foreign.
        """
        folder = Path(path)
        bundle = Bundle(folder, _read_manifest(folder))
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Raise BundleError for the first file that is missing or differs from its record."""
        for name, record in self.manifest.files.items():
            path = self._inside(name)
            if not path.is_file():
                raise BundleError(
                    f"bundle {self.path}: file '{name}' is missing. Copy the whole folder again."
                )
            if path.stat().st_size != record.bytes or sha256_of(path) != record.sha256:
                raise BundleError(
                    f"bundle {self.path}: file '{name}' differs from the manifest "
                    "(truncated or changed). Copy or export the bundle again."
                )

    def graph(self, role: GraphRole) -> Path:
        """Path of a graph. Raises BundleError where the bundle has none of that role."""
        graph = self.manifest.graphs.get(role)
        if graph is None:
            have = ", ".join(sorted(self.manifest.graphs))
            raise BundleError(
                f"bundle {self.path} has no '{role}' graph (it has: {have}). "
                "Export it again with that part."
            )
        return self.file(graph.file)

    def file(self, name: str) -> Path:
        """Path of a recorded file. Raises BundleError where the manifest does not vouch for it."""
        if name not in self.manifest.files:
            raise BundleError(
                f"bundle {self.path}: '{name}' has no record in the manifest, so it is not loaded."
            )
        return self._inside(name)

    def with_rgi(self, **changes: Any) -> Bundle:
        """The bundle with other solver settings, in memory alone.

        Raises: ConfigError where a setting is not known or out of range.
        """
        return self._with(rgi=_changed(self.manifest.rgi, changes))

    def with_energy(self, **changes: Any) -> Bundle:
        """The bundle of an autoencoder with other settings of the projection, in memory alone.

        Raises: ConfigError where a setting is not known or out of range, or the bundle is of
        another method.
        """
        if self.manifest.energy is None:
            raise ConfigError(
                f"bundle {self.path} is of method '{self.manifest.method}', which has no energy. "
                "Export a checkpoint of l2ae, dsae, ae-vae or gamma-vae."
            )
        return self._with(energy=_changed(self.manifest.energy, changes))

    def _with(self, **fields: Any) -> Bundle:
        return Bundle(self.path, self.manifest.model_copy(update=fields))

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise BundleError(
                f"bundle {self.path}: the manifest names '{name}', which lies outside the folder."
            )
        return path


Settings = TypeVar("Settings", bound=BaseModel)


def _changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    try:
        return type(settings).model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting '{name}': {first['msg']}; got {first['input']!r}.") from None


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        what = "is not a folder" if not folder.is_dir() else f"has no {MANIFEST}"
        raise BundleError(
            f"{folder} {what}, so it is no bundle. "
            "Make one with: unblemish export CKPT --out NAME.bundle"
        )
    try:
        text = path.read_text("utf-8")
        return Manifest.model_validate_json(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {folder}: {MANIFEST} cannot be read: {error}") from error
    except ValidationError as error:
        raise BundleError(f"bundle {folder}: {_explain(text, error)}") from error


def _explain(text: str, error: ValidationError) -> str:
    import json

    with contextlib.suppress(ValueError):
        found = json.loads(text)
        version = found.get("schema_version") if isinstance(found, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            return (
                f"schema version {version} is newer than this unblemish knows ({SCHEMA_VERSION}). "
                "Upgrade unblemish, or export the bundle again."
            )
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "top level"
    return (
        f"{MANIFEST} is not valid at '{where}': {first['msg']}. "
        "It was damaged or not written by unblemish."
    )


def write_bundle(
    path: str | os.PathLike[str], files: Mapping[str, bytes | Path], manifest: Mapping[str, Any]
) -> Bundle:
    """Write a bundle atomically: the folder appears whole or not at all; an old one goes last.

    Args:
        files: name inside the bundle -> content, or a file to copy.
        manifest: fields of `Manifest` without `files`, which is computed here.
    Raises: BundleError where `path` is no bundle and no empty folder, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not _replaceable(target):
        raise BundleError(
            f"{target} exists and is no bundle; nothing was written. Choose another --out."
        )
    work: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        work.chmod(0o755)
        records = {name: _place(work / name, content) for name, content in files.items()}
        checked = Manifest.model_validate({**manifest, "files": records})
        write_atomic(work / MANIFEST, checked.model_dump_json(indent=2) + "\n")
        _swap(work, target)
        work = None
    except OSError as error:
        raise BundleError(
            f"cannot write bundle {target}: {error.strerror or error}. Nothing was changed."
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return Bundle(target, checked)


def update_bundle(
    bundle: Bundle,
    *,
    files: Mapping[str, bytes | Path] | None = None,
    drop: Collection[str] = (),
    **changes: Any,
) -> Bundle:
    """Change manifest fields, add or replace `files` and leave out those in `drop`, atomically.

    Without `files` only the manifest is written anew; with them the whole folder is, since a
    replaced file and its record cannot change in one step otherwise.
    Raises: BundleError or SourceError where it cannot be written, or where a file is no longer what
    the manifest says, as after another export to the same place; the bundle is then as before.
    """
    bundle.verify()
    fields = {**bundle.manifest.model_dump(), **changes}
    if files or drop:
        gone = {*(files or {}), *drop}
        kept = {name: bundle.path / name for name in bundle.manifest.files if name not in gone}
        return write_bundle(bundle.path, {**kept, **(files or {})}, fields)
    manifest = Manifest.model_validate(fields)
    write_atomic(bundle.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Bundle(bundle.path, manifest)


def _place(path: Path, content: bytes | Path) -> FileRecord:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        write_atomic(path, content)
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))


def _replaceable(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))


def _swap(work: Path, target: Path) -> None:
    if not target.exists():
        os.rename(work, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    try:
        os.rename(target, old / "bundle")
        try:
            os.rename(work, target)
        except OSError:
            os.rename(old / "bundle", target)
            raise
    finally:
        if target.exists():  # else it is the only copy
            shutil.rmtree(old, ignore_errors=True)
