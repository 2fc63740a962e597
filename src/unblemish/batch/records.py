"""One JSON object per inspected frame."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.batch.sources import Source
from unblemish.images import Image
from unblemish.runtime.inspection import Inspection

Record = dict[str, Any]


def record_of(source: Source, inspection: Inspection, latency_ms: float) -> Record:
    """Everything about one inspected frame but its pictures; numbers that are not finite are None.

    Args:
        latency_ms: wall time of the inspection, without reading the file and writing the results.
    """
    height, width = inspection.mask.shape
    record: Record = _finite(
        {
            **_identity(source),
            "verdict": inspection.verdict,
            "image_score": inspection.image_score,
            "defect_area": int(np.count_nonzero(inspection.mask)),
            "regions": [dataclasses.asdict(region) for region in inspection.regions],
            "status": inspection.status.value,
            "steps": inspection.steps,
            "objective": inspection.objective,
            "kept_plain": inspection.kept_plain,
            "width": width,
            "height": height,
            "latency_ms": latency_ms,
            "timings": dict(inspection.timings),
        }
    )
    return record


def filled_record(
    source: Source,
    restored: Image,
    mask: NDArray[np.bool_] | None,
    latency_ms: float,
    status: str | None = None,
    steps: int | None = None,
) -> Record:
    """Everything about one frame that was filled.

    Args:
        mask: (H, W), what was to be filled; None where the search found it, which then has a
            `status` and `steps`.
    """
    height, width = restored.shape[:2]
    return {
        **_identity(source),
        "blind": mask is None,
        "hole_area": None if mask is None else int(np.count_nonzero(mask)),
        "status": status,
        "steps": steps,
        "width": width,
        "height": height,
        "latency_ms": latency_ms,
    }


def error_record(source: Source, error: Exception) -> Record:
    """The record of a frame that could not be inspected."""
    return {**_identity(source), "error": str(error)}


def to_json(record: Record) -> str:
    """One line of strict JSON, without its end of line."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _identity(source: Source) -> Record:
    where = {"source": str(source.path), "name": source.name, "category": source.category}
    return where if source.frame is None else {**where, "frame": source.frame}


def _finite(value: Any) -> Any:
    """`value` as plain Python, None in place of NaN and infinities, which JSON cannot say."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
