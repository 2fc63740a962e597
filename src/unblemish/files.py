"""Atomic file writing: a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from unblemish.errors import SourceError

_O_BINARY = getattr(os, "O_BINARY", 0)  # Windows


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path` for writing; move it into place on success.

    Raises: SourceError where the folder cannot be written or the disk is full; `path` is then
    as before.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not mkstemp, which makes files private: a bundle or report is for everyone the folder is
        # for, and the umask cannot be read without changing it for all threads.
        name = str(path.parent / f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        temporary = name
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise SourceError(
            f"cannot write {path}: {error.strerror or error}. "
            "Check the disk space and the folder's permissions."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path` atomically."""
    with atomic_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(stream)
        )


def _digest(stream: IO[bytes]) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
