"""What TensorRT reports, collected for our errors instead of printed."""

from __future__ import annotations

from typing import SupportsInt

from unblemish.errors import MissingDependencyError

try:
    import tensorrt as trt
except ImportError as cause:
    raise MissingDependencyError("tensorrt", "tensorrt", "The TensorRT engine") from cause

__all__ = ["Log", "Recorder", "lengths", "trt", "version"]

_KEPT = 8


def version() -> str:
    """Full version of the library, such as 10.16.1.11."""
    return str(vars(trt)["__version__"])  # not among the published signatures


def lengths(dims: trt.Dims) -> tuple[int, ...]:
    """A shape as a tuple; -1 where symbolic."""
    return tuple(dims[i] for i in range(len(dims)))


class Log(trt.ILogger):  # type: ignore[misc]  # Any without TensorRT's signatures
    """TensorRT's logger: keeps the last errors and stays silent.

    One object serves a builder or runtime and everything made by it, and has to outlive them.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors = [*self.errors, " ".join(msg.split())][-_KEPT:]

    def take(self) -> str:
        """What went wrong since the last time, in one line."""
        errors, self.errors = list(dict.fromkeys(self.errors)), []
        return "; ".join(errors).rstrip(". ") or "it gave no reason"


class Recorder(trt.IErrorRecorder):  # type: ignore[misc]  # as above
    """TensorRT's error recorder: passes what a call did wrong to a log, with its code."""

    def __init__(self, log: Log) -> None:
        trt.IErrorRecorder.__init__(self)
        self._log = log
        self._seen: list[tuple[trt.ErrorCodeTRT, str]] = []

    def report_error(self, arg0: trt.ErrorCodeTRT, arg1: str) -> bool:
        """Called by TensorRT; the answer says whether to stop, which is its own to decide."""
        self._seen = [*self._seen, (arg0, arg1)][-_KEPT:]
        self._log.log(trt.ILogger.Severity.ERROR, arg1)
        return False

    def num_errors(self) -> int:
        """Errors kept."""
        return len(self._seen)

    def get_error_code(self, arg0: SupportsInt) -> trt.ErrorCodeTRT:
        """Code of an error kept."""
        return self._seen[int(arg0)][0]

    def get_error_desc(self, arg0: SupportsInt) -> str:
        """Text of an error kept."""
        return self._seen[int(arg0)][1]

    def has_overflowed(self) -> bool:
        """Whether errors were dropped."""
        return len(self._seen) == _KEPT

    def clear(self) -> None:
        """Forget them."""
        self._seen = []
