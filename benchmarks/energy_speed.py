"""Energy projection beside the same steps in eager torch with autograd: time and AUROC.

    python benchmarks/energy_speed.py CHECKPOINT SET [--steps 100] [--images 12] [--threads 2]
        [--backend auto] [--compile]

CHECKPOINT is one of `unblemish train --model l2ae` (or dsae, ae-vae); SET as in
`energy_protocol.py`. Frames are the middle 128 x 128 pixels, so that each is one model image. Both
sides take --steps steps of eq. (8) with seed 002's settings, without a stop criterion, and draw the
DSSIM map; then both reconstruct and draw the map (plain mode). Eager torch runs the network with
its normalisation folded away, as the bundle does. The two take turns frame by frame; a ratio is the
median over the frames of the ratio within a frame. `busy` is the same of CPU time, of all threads:
with --threads 1 it is what to look at where other processes run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cut_paste import iterate
from numpy.typing import NDArray
from torch import Tensor

from unblemish.bundle import Bundle
from unblemish.calibration.metrics.curves import ScoreCounts
from unblemish.calibration.training.energy_losses import dssim_map
from unblemish.export.build import build_bundle
from unblemish.export.models.autoencoder_kinds import AUTOENCODERS
from unblemish.export.models.checkpoint import load_autoencoder
from unblemish.runtime.inspector import Inspector

SIDE = 128
ALPHA, LAM = 0.5, 0.05  # seed 002, section 4.1
Search = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Eager:
    """Eq. (8) as one writes it in torch."""

    def __init__(self, checkpoint: Path, *, compiled: bool) -> None:
        model = load_autoencoder(checkpoint)
        assert model is not None
        self._network = torch.compile(model.network) if compiled else model.network
        self._dssim = AUTOENCODERS[model.kind].loss == "dssim"

    def plain(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """DSSIM of a frame and its reconstruction."""
        with torch.no_grad():
            x = _tensor(frame)
            return _map(x, self._network(x).image)

    def search(self, frame: NDArray[np.uint8], steps: int) -> NDArray[np.float32]:
        """DSSIM of a frame and its projection after `steps` steps."""
        start = _tensor(frame)
        x = start.clone().requires_grad_(True)
        for _ in range(steps):
            y = self._network(x).image
            loss = dssim_map(x, y).sum() if self._dssim else (x - y).square().sum()
            energy = loss + LAM * (x - start).abs().sum()
            (slope,) = torch.autograd.grad(energy, x)
            with torch.no_grad():
                x -= ALPHA * slope * (x - y).square()
                x.clamp_(0, 1)
        return _map(start, x.detach())


def _tensor(frame: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frame.astype(np.float32) / np.float32(255))[None, None]


def _map(x: Tensor, y: Tensor) -> NDArray[np.float32]:
    return np.asarray(dssim_map(x, y)[0, 0].numpy())


def main() -> None:
    """Measure both, frame by frame."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    eager = Eager(options.checkpoint, compiled=options.compile)
    frames = _frames(options)
    with tempfile.TemporaryDirectory() as folder:
        made = build_bundle(options.checkpoint, Path(folder) / "model.bundle")
        bundle = _plain_settings(made)
        common: dict[str, Any] = {"threads": options.threads, "backend": options.backend}
        with Inspector.open(bundle, refine="none", **common) as ours:
            _compare("plain", frames, lambda f: ours.search(f).score, eager.plain)
        with Inspector.open(
            bundle, refine="energy", schedule="paper", max_steps=options.steps, **common
        ) as ours:
            _compare(
                f"{options.steps} steps", frames, lambda f: ours.search(f).score,
                lambda f: eager.search(f, options.steps),
            )  # fmt: skip


def _frames(options: argparse.Namespace) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Middle squares of defective images, evenly through the set, that show some defect."""
    found = []
    for _, image, truth in iterate(options.set):
        top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
        square = slice(top, top + SIDE), slice(left, left + SIDE)
        if min(top, left) >= 0 and truth[square].any():
            found.append((np.ascontiguousarray(image[square]), truth[square]))
    chosen = np.linspace(0, len(found) - 1, min(options.images, len(found))).round().astype(int)
    return [found[i] for i in chosen]


def _plain_settings(bundle: Bundle) -> Bundle:
    """The seed's settings; no end before the last step."""
    energy = bundle.manifest.energy
    assert energy is not None
    changes = {"alpha": ALPHA, "lam": LAM, "training_losses": (), "tolerance": 0.0}
    preprocess = bundle.manifest.preprocess.model_copy(update={"geometry": "stretch"})
    manifest = bundle.manifest.model_copy(
        update={"energy": energy.model_copy(update=changes), "preprocess": preprocess}
    )
    return Bundle(bundle.path, manifest)


def _compare(
    name: str,
    frames: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    ours: Search,
    theirs: Search,
) -> None:
    """Print AUROC and time of both, and how far the maps are apart."""
    counts, seconds, apart = (ScoreCounts(), ScoreCounts()), [], 0.0
    for search in (ours, theirs):
        search(frames[0][0])
    for frame, truth in frames:
        row = []
        maps = []
        for search, count in zip((ours, theirs), counts, strict=True):
            began = time.perf_counter(), time.process_time()
            maps.append(search(frame))
            row.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            count.add(maps[-1], truth)
        seconds.append(row)
        apart = max(apart, float(np.abs(maps[0] - maps[1]).max()))
    times = 1e3 * np.array(seconds)  # (frames, side, wall or busy)
    mine, eager = np.median(times, axis=0)
    ratios = times[:, 1] / times[:, 0]
    wall, busy = np.median(ratios, axis=0)
    least, largest = ratios.min(axis=0)[0], ratios.max(axis=0)[0]
    aurocs = [count.auroc() for count in counts]
    print(
        f"{name}: ours {mine[0]:.1f} ms, eager {eager[0]:.1f} ms an image; ratio {wall:.2f} "
        f"({least:.2f}-{largest:.2f}), busy {busy:.2f}; AUROC {aurocs[0]:.4f} and {aurocs[1]:.4f}; "
        f"maps apart by {apart:.1e}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile as the baseline")
    return parser.parse_args()


if __name__ == "__main__":
    main()
