"""The training loop: budget, checkpoints, signals. It knows no model."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unblemish.calibration.training.augment import augment
from unblemish.calibration.training.dataset import Normals
from unblemish.calibration.training.options import TrainOptions, same_run
from unblemish.calibration.training.patience import Patience
from unblemish.calibration.training.samples import write_grid
from unblemish.calibration.training.trainer import Measuring, Trainer
from unblemish.errors import ConfigError, ModelError
from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint

LR = 1e-3
EXAMPLES = 256
WARM_UP = 50  # updates
CHECKED = 64  # held-back images in a check of the patience
MEASURED = 1024  # training images whose losses are measured
SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `share` of the budget done, `seconds` of training, `left` to go."""

    step: int
    share: float
    seconds: float
    left: float
    loss: float


@dataclass
class Run:
    """State of one run.

    Args:
        step: updates done; `seconds` of training time, earlier parts included.
        losses: loss of every update of this part of the run.
        stopped_by: name of the signal that ended it early.
    """

    options: TrainOptions
    trainer: Trainer
    normals: Normals
    out: Path
    step: int = 0
    seconds: float = 0.0
    losses: list[float] | None = None
    stopped_by: str | None = None
    figures: dict[str, float] | None = None
    patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        self.patience = Patience(self.options.checks)

    def share(self) -> float:
        """Share of the budget done, by updates or time, whichever is nearer its end."""
        options = self.options
        by_step = self.step / options.steps if options.steps else 0.0
        by_time = self.seconds / (60 * options.minutes) if options.minutes else 0.0
        return min(1.0, max(by_step, by_time))

    def learning_rate(self) -> float:
        """Rises over the first updates, then falls along a cosine to a twentieth."""
        base = self.options.lr or LR
        fall = 0.525 + 0.475 * math.cos(math.pi * self.share())
        return base * fall * min(1.0, (self.step + 1) / WARM_UP)

    def begin(self) -> None:
        """Give the trainer the images for its start values, drawn by the seed."""
        rng = np.random.default_rng([self.options.seed])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

        def draw(count: int) -> torch.Tensor:
            images = torch.from_numpy(self.normals.batch(count, rng))
            return augment(images, self.options.augment, generator)

        self.trainer.begin(draw)

    def save(self) -> None:
        """Evaluate, draw the sample grid and write the checkpoint, atomically.

        Raises: ModelError where a weight is not finite; the old checkpoint then stays.
        """
        weights = self.trainer.weights()
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise _diverged(self, "a weight")
        training = {
            "options": self.options.plain(),
            "step": self.step,
            "seconds": self.seconds,
            "bfloat16": self.trainer.bfloat16,
            "state": self.trainer.state(),
        }
        with self._best_weights(training):
            self._write(training)

    @contextmanager
    def _best_weights(self, training: dict[str, Any]) -> Iterator[None]:
        """Let the trainer hold the best weights, where some are known; the latest go on record."""
        best = self.patience.weights
        if best is None:
            yield
            return
        latest = {name: value.detach().clone() for name, value in self.trainer.weights().items()}
        training["latest"], training["patience"] = latest, self.patience.plain()
        state = training["state"]
        self.trainer.restore(best, state)
        try:
            yield
        finally:
            self.trainer.restore(latest, state)

    def _write(self, training: dict[str, Any]) -> None:
        examples = torch.from_numpy(self.normals.examples(EXAMPLES))
        self.figures = {
            **self.trainer.evaluate(examples), "steps": float(self.step), "seconds": self.seconds
        }  # fmt: skip
        save_checkpoint(
            self.out,
            Checkpoint(
                self.trainer.kind,
                self.trainer.settings_plain(),
                self.trainer.weights(),
                self.trainer.discriminator(),
                self.normals.preprocess.model_dump(),
                training,
                self.trainer.growth(),
                self.figures,
                self._losses(),
            ),
        )
        write_grid(self.out.with_suffix(".png"), self.trainer.preview(examples[:8]))

    def _losses(self) -> list[list[float]]:
        """[share, loss that this share of the un-augmented training images does not exceed]."""
        if not isinstance(self.trainer, Measuring):
            return []
        found = [
            self.trainer.losses(torch.from_numpy(part)).numpy()
            for part in self.normals.originals(MEASURED)
        ]
        values = np.quantile(np.concatenate(found), SHARES)
        return [[share, float(value)] for share, value in zip(SHARES, values, strict=True)]

    def check(self) -> None:
        """Measure the held-back loss where that is due."""
        if not self.patience.due(self.step):
            return
        figures = self.trainer.evaluate(torch.from_numpy(self.normals.examples(CHECKED)))
        loss = figures.get("held_back_loss", figures["held_back_rmse"])
        self.patience.saw(loss, self.step, self.trainer.weights())

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises: ConfigError, ModelError where it is of another run."""
        training: dict[str, Any] = checkpoint.training or {}
        if "state" not in training:
            raise ModelError(
                f"{self.out} holds weights only, no state to resume from. Train to another --out."
            )
        same_run(self.options, training["options"])
        before, now = checkpoint.preprocess["channels"], self.normals.preprocess.channels
        if before != now:
            raise ConfigError(
                f"{self.out} was trained on images of {before} channel(s), these give {now}. "
                "Resume with the same --channels and images, or train to another --out."
            )
        self.trainer.restore(training.get("latest", checkpoint.weights), training["state"])
        if "patience" in training:
            self.patience.restore(training["patience"], checkpoint.weights)
        self.step, self.seconds = int(training["step"]), float(training["seconds"])
        self.trainer.bfloat16 = bool(training["bfloat16"])


def run_loop(run: Run, report: Callable[[Progress], None] | None = None) -> None:
    """Train until the budget is used, patience ends or a signal asks to stop, then save.

    Every update draws from generators seeded by (seed, step) alone: a resumed run repeats the
    updates of an uninterrupted one.
    Raises: ModelError where the loss is not finite; the last good checkpoint stays.
    """
    run.losses = []
    saved = time.monotonic()
    with _stop_on_signal(run):
        while run.share() < 1.0 and run.stopped_by is None and not run.patience.settled:
            started = time.monotonic()
            loss = _update(run)
            run.losses.append(loss)
            run.step += 1
            run.seconds += time.monotonic() - started
            run.check()
            if report is not None:
                report(_progress(run, loss))
            if time.monotonic() - saved > run.options.checkpoint_seconds:
                run.save()
                saved = time.monotonic()
        run.save()


def _update(run: Run) -> float:
    rng = np.random.default_rng([run.options.seed, run.step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images = torch.from_numpy(run.normals.batch(run.options.batch, rng))
    images = augment(images, run.options.augment, generator)
    run.trainer.progress = run.share()
    loss = run.trainer.step(images, generator, run.step, run.learning_rate())
    if not math.isfinite(loss):
        raise _diverged(run, "the loss")
    return loss


def _diverged(run: Run, what: str) -> ModelError:
    kept = f"The last good checkpoint is kept in {run.out}." if run.out.is_file() else ""
    rate = run.options.lr or LR
    return ModelError(
        f"training diverged at step {run.step}: {what} is not finite. {kept} "
        f"Train again with a smaller --lr (now {rate:g})."
    )


def _progress(run: Run, loss: float) -> Progress:
    share = run.share()
    left = run.seconds * (1 - share) / share if share > 0 else math.inf
    return Progress(run.step, share, run.seconds, left, loss)


@contextmanager
def _stop_on_signal(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the update at hand; a second SIGINT interrupts it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        run.stopped_by = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
