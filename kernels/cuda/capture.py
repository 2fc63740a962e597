"""Stream capture and order between streams, which pycuda lacks, by the driver library itself."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

from unblemish.errors import BackendError

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate meanwhile
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


@functools.cache
def library() -> ctypes.CDLL:
    """The CUDA driver. Raises: BackendError where it is not installed."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise BackendError(
            f"{name} cannot be loaded: {error}. Install the NVIDIA driver."
        ) from error


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver. Raises: BackendError for anything but success."""
    code = int(getattr(library(), name)(*arguments))
    if code == 0:
        return
    text = ctypes.c_char_p()
    library().cuGetErrorString(code, ctypes.byref(text))
    reason = (text.value or b"unknown error").decode()
    raise BackendError(f"CUDA failed at {name}: {reason} ({code}).")


class CapturedGraph:
    """See `Graph`. Destroyed when the object dies."""

    def __init__(self, graph: ctypes.c_void_p, stream: int) -> None:
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, _flags(0))
        finally:
            call("cuGraphDestroy", graph)

    def launch(self) -> None:
        """See `Graph`."""
        call("cuGraphLaunch", self._executable, self._stream)

    def __del__(self) -> None:
        if self._executable.value:
            library().cuGraphExecDestroy(self._executable)


class StreamApi:
    """What is done to one stream."""

    def __init__(self, stream: int) -> None:
        self._stream = ctypes.c_void_p(stream)
        self._mark: ctypes.c_void_p | None = None

    def begin_capture(self) -> None:
        """See `Driver`."""
        call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_RELAXED))

    def end_capture(self) -> CapturedGraph:
        """See `Driver`."""
        return CapturedGraph(self._end(), int(self._stream.value or 0))

    def abandon_capture(self) -> None:
        """End the capture, whether it was broken or not, and drop what was recorded."""
        graph = ctypes.c_void_p()
        library().cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if graph.value:
            call("cuGraphDestroy", graph)

    def order(self, before: int, after: int) -> None:
        """Make stream `after` wait for what is on `before` by now."""
        if self._mark is None:
            mark = ctypes.c_void_p()
            call("cuEventCreate", ctypes.byref(mark), ctypes.c_uint(_NO_TIMING))
            self._mark = mark
        call("cuEventRecord", self._mark, ctypes.c_void_p(before))
        call("cuStreamWaitEvent", ctypes.c_void_p(after), self._mark, ctypes.c_uint(0))

    def _end(self) -> ctypes.c_void_p:
        graph = ctypes.c_void_p()
        call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        if not graph.value:
            raise BackendError("the capture of a CUDA graph was broken by a call that it forbids.")
        return graph


def _flags(value: int) -> ctypes.c_ulonglong:
    return ctypes.c_ulonglong(value)
