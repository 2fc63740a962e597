"""Atomic writing: the old content or the new, never half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unblemish.errors import SourceError
from unblemish.files import atomic_file, sha256_of, write_atomic


def test_write_atomic_makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.txt"]


def test_atomic_file_keeps_the_old_content_when_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    write_atomic(path, "old")

    def write_half() -> None:
        with atomic_file(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_write_atomic_explains_when_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="cannot write"):
        write_atomic(tmp_path / "file" / "b.txt", "x")


def test_sha256_of_matches_the_published_vector(tmp_path: Path) -> None:
    write_atomic(tmp_path / "abc", "abc")
    assert (
        sha256_of(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_write_atomic_gives_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_write_atomic_never_touches_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise AssertionError("the umask belongs to all threads of the process")

    monkeypatch.setattr(os, "umask", refuse)
    write_atomic(tmp_path / "a", "x")
