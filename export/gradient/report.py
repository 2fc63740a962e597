"""What the differentiated graphs keep, compute again and contain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unblemish.export.gradient.types import Dim


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that the way back reads.

    `source` says where it comes from: an extra output of `forward`, one of the original outputs, or
    an original input that the caller feeds to `backward` again under its own name. `bytes` counts
    symbolic dimensions at their nominal size (see `Report.nominal`).
    """

    name: str
    shape: tuple[Dim, ...] | None
    dtype: str
    bytes: int
    source: Literal["forward", "output", "input"]


@dataclass(frozen=True)
class Report:
    """What `differentiate` decided."""

    kept: tuple[KeptTensor, ...]
    recomputed: tuple[str, ...]  # values of the forward graph computed again on the way back
    nodes: dict[str, int]  # of original, forward, backward, fused
    nominal: int  # size a symbolic dimension counts as
    expanded: tuple[str, ...] = ()  # operators replaced by their definition in the standard

    @property
    def kept_bytes(self) -> int:
        """Bytes of the tensors that `forward` adds for the way back."""
        return sum(tensor.bytes for tensor in self.kept if tensor.source == "forward")

    def __str__(self) -> str:
        counts = ", ".join(f"{key} {count}" for key, count in self.nodes.items())
        lines = [f"nodes: {counts}", f"kept for the way back: {self.kept_bytes} bytes"]
        lines += [
            f"  {t.name}: {t.dtype}{list(t.shape or ())}, {t.bytes} bytes, from {t.source}"
            for t in self.kept
        ]
        return "\n".join([*lines, f"computed again: {len(self.recomputed)} values"])
