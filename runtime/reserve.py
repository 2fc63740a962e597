"""Time to leave of a deadline for what comes after the search."""

from __future__ import annotations

from collections import deque

_RECENT = 5
_SIZES = 8


class Reserve:
    """What a stage is expected to take, by the size of the frame.

    It is the second largest of the last five times: one hiccup of the machine must not take the
    time of the frames after it, and a small frame owes nothing to a large one before it.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def add(self, pixels: int, seconds: float) -> None:
        """Note what the stage took for frames of so many pixels."""
        if pixels not in self._recent and len(self._recent) >= _SIZES:
            self._recent.clear()
        self._recent.setdefault(pixels, deque(maxlen=_RECENT)).append(seconds)

    def expected(self, pixels: int) -> float:
        """Seconds; 0 for a size that has not been seen."""
        times = sorted(self._recent.get(pixels, ()))
        return times[-2] if len(times) > 1 else sum(times)
