"""Tiny runs whose result is known: what imports need not work."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import UnblemishError

Float = NDArray[np.float32]

# Two 3x3 convolutions with Sobel's kernels, padding 1, and a ReLU, on an 8x8 ramp x = column. Away
# from the border the first kernel gives -8, so 0; at the right border it gives 4 * 6 = 24.
_GRAPH = "probe.onnx"
_BORDER, _INSIDE = 24.0, 0.0


def probe_backend(name: str) -> str | None:
    """Run the probe on an engine of `unblemish`; None where it works, else the reason."""
    from unblemish.runtime.backends import open_backend

    try:
        with _graph() as path:
            outputs = open_backend(name, threads=1).program(str(path)).run({"x": _ramp()})
            return _judge(np.asarray(outputs["z"]))
    except UnblemishError as error:
        return str(error)
    except Exception as error:  # an engine may fail with whatever it likes; that is the finding
        return f"{type(error).__name__}: {error}"


def probe_provider(name: str) -> str | None:
    """Run the probe on one of ONNX Runtime's providers; None where it works, else the reason."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        with _graph() as path, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it gives way is stated below
            session = ort.InferenceSession(str(path), options, providers=[name])
        if session.get_providers()[0] != name:
            return f"it gave way to {session.get_providers()[0]}: its libraries cannot be loaded"
        return _judge(session.run(None, {"x": _ramp()})[0])
    except Exception as error:  # as above
        return f"{type(error).__name__}: {error}"


def _graph() -> AbstractContextManager[Path]:
    return resources.as_file(resources.files("unblemish.doctor").joinpath(_GRAPH))


def _ramp() -> Float:
    return np.tile(np.arange(8, dtype=np.float32), (8, 1))[None, None]


def _judge(z: Float) -> str | None:
    if z.shape != (1, 2, 8, 8):
        return f"it gives an output of shape {z.shape}"
    seen = (float(z[0, 0, 4, 7]), float(z[0, 0, 4, 3]))
    return None if np.allclose(seen, (_BORDER, _INSIDE)) else f"it gives wrong numbers: {seen}"


def probe_video() -> str | None:
    """None where OpenCV has a reader of video files, else the reason."""
    import cv2

    readers = cv2.videoio_registry.getStreamBackends()
    return None if readers else "this build of OpenCV reads no video files"
