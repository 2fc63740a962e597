"""Write a set of faces drawn by a VAE: colour images for autoencoders, with exactly known defects.

    python benchmarks/face_set.py OUT CHECKPOINT [--train 2000] [--held-back 100] [--test 40]

CHECKPOINT is any generator of colour images that `unblemish export` reads, e.g. a published face
VAE of 64 pixels. Its decoded random codes (standard normal) get a light that varies over the image
by some per cent and noise of 1 % of white. train/good and held_back/good are normal; the first of
the latter are in test/good, and in test/own with defects of our generators as in `cut_paste.py`
(eq. 16 of seed 003), their masks in ground_truth/own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from cut_paste import GROUPS, digest, draw_mask, paste
from numpy.typing import NDArray

from unblemish.export.models.checkpoint import load_model
from unblemish.images import write_image

Bytes = NDArray[np.uint8]
LIGHT, NOISE, CONTRAST = 0.03, 0.01, 0.2  # shares of white


def main() -> None:
    """Draw the faces, paste the defects, and print the digest of the set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--held-back", type=int, default=100)
    parser.add_argument("--test", type=int, default=40, help="of those held back")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums everywhere
    rng = np.random.default_rng(5)
    for part, count in (("train", options.train), ("held_back", options.held_back)):
        drawn = faces(options.checkpoint, count, rng)
        for index, face in enumerate(drawn):
            _write(options.out / part / "good" / f"{index:04d}.png", face)
    rng = np.random.default_rng(9)
    for index, face in enumerate(drawn[: options.test]):
        mask = draw_mask("own", [], GROUPS[index % len(GROUPS)], len(face), rng)
        _write(options.out / "test" / "good" / f"{index:03d}.png", face)
        spoilt = paste(face, mask, CONTRAST, rng)
        _write(options.out / "test" / "own" / f"{index:03d}.png", spoilt)
        truth = (255 * mask).astype(np.uint8)
        _write(options.out / "ground_truth" / "own" / f"{index:03d}_mask.png", truth)
    print(digest(options.out))


def faces(checkpoint: Path, count: int, rng: np.random.Generator) -> list[Bytes]:
    """Decoded random codes, lit and noisy; (side, side, 3) each."""
    model = load_model(checkpoint)
    codes = torch.from_numpy(rng.standard_normal((count, model.latent)).astype(np.float32))
    with torch.no_grad():
        images = (model.generator(codes).numpy() - model.low) / (model.high - model.low)
    return [_lit(image, rng) for image in images]


def _lit(image: NDArray[np.float32], rng: np.random.Generator) -> Bytes:
    """`image`: (3, side, side) in [0, 1]."""
    y, x = np.mgrid[-1 : 1 : image.shape[1] * 1j, -1 : 1 : image.shape[2] * 1j]
    level, across, down = rng.normal(0, LIGHT, 3)
    noisy = image * (1 + level + across * x + down * y) + rng.normal(0, NOISE, image.shape)
    return np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8).transpose(1, 2, 0)


def _write(path: Path, image: Bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.ascontiguousarray(image))


if __name__ == "__main__":
    main()
