"""What every graph rewrite returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from onnx import ModelProto


@dataclass(frozen=True)
class PassResult:
    """The rewritten model and what was done to it.

    Args:
        model: a new model; the one given to the pass is never touched.
        changed: how many places were rewritten; 0 leaves a model equal to the input.
        reasons: one line for each place that looked alike and was left alone.
    """

    model: ModelProto
    changed: int
    reasons: list[str] = field(default_factory=list)


Pass = Callable[[ModelProto], PassResult]
