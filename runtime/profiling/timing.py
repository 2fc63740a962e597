"""Samples of a time, and their percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Times:
    """Percentiles of a time in ms, over `samples` measurements."""

    p50: float
    p90: float
    p99: float
    samples: int

    @staticmethod
    def of(milliseconds: Sequence[float]) -> Times:
        """Summarise measurements, at least one."""
        p50, p90, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 99)))
        return Times(p50, p90, p99, len(milliseconds))
