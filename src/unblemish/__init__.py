"""Optimisation-based, pixel-accurate defect detection and mask-free inpainting.

>>> import unblemish
>>> inspector = unblemish.Inspector.open("part.bundle")  # doctest: +SKIP
>>> inspection = inspector.inspect(frame)                # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unblemish.errors import UnblemishError

if TYPE_CHECKING:
    from unblemish.runtime.inspection import Inspection, Region, Status
    from unblemish.runtime.inspector import Inspector

__version__ = "0.1.0"

__all__ = ["Inspection", "Inspector", "Region", "Status", "UnblemishError", "__version__"]

_HOME = {
    "Inspection": "unblemish.runtime.inspection",
    "Inspector": "unblemish.runtime.inspector",
    "Region": "unblemish.runtime.inspection",
    "Status": "unblemish.runtime.inspection",
}


def __getattr__(name: str) -> Any:
    # Importing the runtime loads ONNX Runtime and OpenCV: only when it is used.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unblemish' has no attribute '{name}'")
