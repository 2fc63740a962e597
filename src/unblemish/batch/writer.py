"""The folder of results: pictures by name, one line per frame; every file is whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.batch.records import Record, to_json
from unblemish.batch.run import Result
from unblemish.batch.sources import Source
from unblemish.errors import SourceError
from unblemish.files import write_atomic
from unblemish.images import Image, write_image
from unblemish.report.overlay import draw_overlay
from unblemish.runtime.inspection import Inspection


class ResultWriter:
    """Writes `overlays/`, `masks/`, `restored/` and `results.jsonl` under `out`.

    A line of `results.jsonl` is there as soon as its pictures are. Use as a context manager.
    Raises: SourceError where the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        if out.exists() and not out.is_dir():
            raise SourceError(f"{out} is a file; --out wants a folder. Choose another --out.")
        try:
            out.mkdir(parents=True, exist_ok=True)
            for old in (
                "metrics.json",
                "report.html",
                "grid.png",
            ):  # they would speak of another batch
                (out / old).unlink(missing_ok=True)
            self._lines = os.open(
                out / "results.jsonl", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666
            )
        except OSError as error:
            raise _cannot(out, error) from error

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lines)

    def save(self, result: Result) -> Result:
        """Write the pictures, then the line; returns the result with the pictures' paths in it."""
        if result.image is not None and result.inspection is not None:
            files = self._pictures(result.source, result.image, result.inspection, result.truth)
            result = replace(result, record={**result.record, "files": files})
        self._line(result.record)
        return result

    def save_restored(self, record: Record, restored: Image | None) -> Record:
        """Write the restored image of a frame, where there is one, then its line."""
        if restored is not None:
            name = self._restored(record["name"], restored)
            record = {**record, "files": {"restored": name}}
        self._line(record)
        return record

    def json_file(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file beside the results."""
        write_atomic(self.out / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _pictures(
        self,
        source: Source,
        frame: Image,
        inspection: Inspection,
        truth: NDArray[np.bool_] | None,
    ) -> dict[str, str]:
        """Write overlay, mask and restored image; return their paths relative to `out`.

        Mask and restored image have the frame's size; a floating-point image is written as TIFF.
        """
        files = {
            "overlay": f"overlays/{source.name}.png",
            "mask": f"masks/{source.name}.png",
            "restored": self._restored(source.name, inspection.restored),
        }
        overlay = draw_overlay(
            frame,
            inspection.mask,
            inspection.regions,
            truth=truth,
            passed=inspection.verdict == "pass",
        )
        write_image(self.out / files["overlay"], overlay)
        write_image(self.out / files["mask"], inspection.mask)
        return files

    def _restored(self, name: str, image: Image) -> str:
        """Write a restored image; its path relative to `out`."""
        floating = np.issubdtype(image.dtype, np.floating)
        path = f"restored/{name}.{'tiff' if floating else 'png'}"
        write_image(self.out / path, image)
        return path

    def _line(self, record: Record) -> None:
        """Append one record to `results.jsonl`; a line that does not fit is taken back."""
        line = (to_json(record) + "\n").encode()
        start = os.lseek(self._lines, 0, os.SEEK_CUR)
        try:
            done = os.write(self._lines, line)
            while done < len(line):
                done += os.write(self._lines, line[done:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lines, start)
                os.lseek(self._lines, start, os.SEEK_SET)
            raise _cannot(self.out / "results.jsonl", error) from error


def _cannot(path: Path, error: OSError) -> SourceError:
    return SourceError(
        f"cannot write {path}: {error.strerror or error}. "
        "Check the disk space and the folder's permissions."
    )
