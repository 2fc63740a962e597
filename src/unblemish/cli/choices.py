"""Choices that several commands offer."""

from __future__ import annotations

from enum import Enum

BACKEND = "auto, tensorrt, ort-tensorrt, ort-cuda, onnxruntime, openvino or torch"
"""Help of --backend; auto is the first of those to onnxruntime that runs, see `doctor`."""


class Refine(str, Enum):
    """How far the search goes."""

    RGI = "rgi"
    RRGI = "rrgi"
    NONE = "none"
    L2 = "l2"
    L1 = "l1"
    ANOGAN = "anogan"
    INITIAL = "initial"
    F2PAD = "f2pad"
    ENERGY = "energy"
    LATENT = "latent"
    ERROR = "error"
    GRADIENT = "gradient"
    GRADIENT_ERROR = "gradient-error"
    KL = "kl"
    KL_ERROR = "kl-error"


class Schedule(str, Enum):
    """In which steps it goes."""

    FAST = "fast"
    PAPER = "paper"
