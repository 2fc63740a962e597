"""One training run from a folder of normal images to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unblemish.calibration.training.autoencoder_trainer import AutoencoderTrainer
from unblemish.calibration.training.dataset import Normals, open_normals
from unblemish.calibration.training.loop import Progress, Run, run_loop
from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.pca_trainer import PcaTrainer
from unblemish.calibration.training.pggan_trainer import PgganTrainer
from unblemish.calibration.training.trainer import Trainer
from unblemish.calibration.training.vae_trainer import VaeTrainer
from unblemish.errors import ConfigError
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS
from unblemish.export.models.checkpoint import load_checkpoint

TRIALS = 3
_TRAINERS: dict[str, Callable[[TrainOptions, int], Trainer]] = {
    "vae": VaeTrainer,
    "pca": PcaTrainer,
    "pggan": PgganTrainer,
    **dict.fromkeys(AUTOENCODERS, AutoencoderTrainer),
}


@dataclass(frozen=True)
class TrainingReport:
    """What a run did.

    Args:
        checkpoint: the file written; `grid` the picture beside it.
        steps: updates in all; `seconds` of training in all.
        losses: loss of every update of this part of the run.
        figures: figures on held-back images, steps and seconds.
        images: number of training images; `held_back` of those kept out.
        broken: file -> why it was skipped.
        stopped_by: signal that ended the run early, or None.
        settled: update whose weights are kept because none of many later checks was better; None
            where the run used its budget.
    """

    checkpoint: Path
    grid: Path
    steps: int
    seconds: float
    losses: tuple[float, ...]
    figures: dict[str, float]
    images: int
    held_back: int
    broken: dict[Path, str]
    stopped_by: str | None
    settled: int | None = None


def train(
    folder: Path,
    out: Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    overwrite: bool = False,
    opened: Callable[[Normals], None] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Train a generator or autoencoder on the normal images of a folder, and write its checkpoint.

    Args:
        folder: images, at any depth; broken ones are skipped and reported.
        out: checkpoint, `.pt`.
        resume: go on from `out` where it exists. overwrite: replace it.
        opened: called once with the images found; report: called after every update.
    Raises: SourceError where no image can be read or the checkpoint cannot be written; ConfigError
    where `out` exists and neither `resume` nor `overwrite` is given, or belongs to another run;
    ModelError where training diverges.
    """
    _check_out(out, resume=resume, overwrite=overwrite)
    # A broken checkpoint should be known before the images are read.
    earlier = load_checkpoint(out) if resume and out.exists() else None
    normals = open_normals(folder, options)
    if opened is not None:
        opened(normals)
    channels = normals.preprocess.channels
    trainer = _TRAINERS[options.model](options, channels)
    run = Run(options, trainer, normals, out)
    if earlier is not None:
        run.resume(earlier)
    else:
        trainer.bfloat16 = options.model == "vae" and _bfloat16(options, channels)
        run.begin()
    run_loop(run, report)
    return TrainingReport(
        out, out.with_suffix(".png"), run.step, run.seconds, tuple(run.losses or ()),
        run.figures or {}, len(normals.train), len(normals.held_back), normals.broken,
        run.stopped_by, run.patience.step if run.patience.settled else None,
    )  # fmt: skip


def _check_out(out: Path, *, resume: bool, overwrite: bool) -> None:
    if out.suffix not in (".pt", ".pth"):
        raise ConfigError(f"--out must end in .pt, which can hold all state; found '{out.name}'.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. Choose a file name for --out.")
    if out.exists() and not (resume or overwrite):
        raise ConfigError(f"{out} exists. Add --resume to go on with it, or --overwrite.")


def _bfloat16(options: TrainOptions, channels: int) -> bool:
    """Decide the precision; `auto` times a few updates of each on a network that is thrown away."""
    if options.precision != "auto":
        return options.precision == "bfloat16"
    images = torch.zeros(options.batch, channels, options.size, options.size)
    seconds = {}
    for bfloat16 in (False, True):
        trainer = VaeTrainer(options, channels)
        trainer.bfloat16 = bfloat16
        taken = []
        for step in range(TRIALS):
            started = time.monotonic()
            trainer.step(images, torch.Generator().manual_seed(step), step, 1e-5)
            taken.append(time.monotonic() - started)
        seconds[bfloat16] = float(np.min(taken))
    return seconds[True] < 0.9 * seconds[False]
