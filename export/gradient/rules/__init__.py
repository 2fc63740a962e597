"""The gradient rules, one file per operator family; `load` imports them all."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "activation",
    "arithmetic",
    "convolution",
    "cropping",
    "generated",
    "indexing",
    "layout",
    "matmul",
    "maximum",
    "normalisation",
    "pooling",
    "reduction",
    "resize",
    "trigonometric",
)


def load() -> None:
    """Register every rule; repeated calls do nothing."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
