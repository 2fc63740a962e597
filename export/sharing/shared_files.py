"""The files of graphs that stand in one folder and share what weights they can."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import onnx

from unblemish.errors import BundleError
from unblemish.export.sharing.rescale_dense import rescale_dense
from unblemish.export.sharing.share_weights import FILE_NAME, LEAST, share_weights
from unblemish.export.sharing.turn_kernels import turn_kernels


def shared_files(graphs: Mapping[str, onnx.ModelProto]) -> dict[str, bytes]:
    """Content of the graphs' files, and of the file with the weights beside them.

    Args:
        graphs: by file name, '/' between folders, all of one folder; those that the others are made
            of first.
    Returns: file name -> content.
    """
    joined = share_weights(rescale_dense(turn_kernels(graphs, LEAST), LEAST))
    files = {name: model.SerializeToString() for name, model in joined.graphs.items()}
    if joined.data:
        folder = PurePosixPath(next(iter(graphs))).parent
        files[str(folder / FILE_NAME)] = joined.data
    return files


@contextmanager
def written(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder with these files.

    Raises: BundleError where they cannot be written.
    """
    # Where open files cannot be removed, an engine that still maps one must not fail the export.
    with tempfile.TemporaryDirectory(prefix="unblemish-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            for file, content in files.items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
        except OSError as error:
            raise BundleError(
                f"cannot write the graphs to {folder} to check them: {error.strerror or error}. "
                "Nothing was changed. Free some space there, or set TMPDIR."
            ) from error
        yield folder
