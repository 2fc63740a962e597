"""What runs in a process of its own for `place_by_modelopt`: python -m ... FOLDER."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from modelopt.onnx.quantization import quantize
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from unblemish.export.precision.half import HEAVY

Feeds = dict[str, NDArray[Any]]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The feeds of a folder, one file each; with what ModelOpt asks for beyond ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
        self.rewind()

    def rewind(self) -> None:
        """Begin again."""
        self._left: Iterator[Path] = iter(self._paths)

    def get_first(self) -> Feeds:
        """The first feeds, whatever has been read."""
        return _read(self._paths[0])

    def get_next(self) -> Feeds | None:
        """The next feeds, None behind the last."""
        path = next(self._left, None)
        return None if path is None else _read(path)


def _read(path: Path) -> Feeds:
    with np.load(path) as stored:
        return dict(stored)


def main(folder: Path) -> None:
    """Quantise plain.onnx into int8.onnx."""
    quantize(
        str(folder / "plain.onnx"),
        quantize_mode="int8",
        calibration_method="max",
        calibration_data_reader=Reader(folder),
        calibration_eps=["cpu"],
        nodes_to_quantize=json.loads((folder / "chosen.json").read_text()),
        op_types_to_quantize=sorted(HEAVY),
        high_precision_dtype="fp32",
        passes=[],
        output_path=str(folder / "int8.onnx"),
        log_level="CRITICAL",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
