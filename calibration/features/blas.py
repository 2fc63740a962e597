"""Matrix products that are many and small."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any


def one_thread() -> contextlib.AbstractContextManager[Any]:
    """Keep BLAS to one thread inside the block, where threadpoolctl is installed.

    Its threads meet at the end of every product: of 3,136 products of 100 x 200 x 100 on two cores
    that another process works on too, that was 26 s instead of 2.2 s. The coreset's products of a
    matrix with a vector wait for memory, not for a core, and are as fast on one.
    """
    try:
        limits = importlib.import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    held: contextlib.AbstractContextManager[Any] = limits(1, user_api="blas")
    return held
