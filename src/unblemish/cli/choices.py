"""Options and choices that several commands offer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

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


Files = Annotated[
    list[Path], typer.Argument(metavar="FILES|DIR|VIDEO...", help="Any number of each.")
]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="One JSON object per image on stdout, not the table.")
]
Deadline = Annotated[
    float | None, typer.Option(help="Time for one image; the best found by then counts.")
]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Most steps per image [the bundle's].")]
Backend = Annotated[str | None, typer.Option(help=f"{BACKEND} [auto].")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the engine [its own choice].")]
White = Annotated[
    float | None, typer.Option(help="Intensity of white in the images, e.g. 4095 [the bundle's].")
]
