"""Inpainting with a known mask and blind: seed 002, section 4.2, on faces, textures and tiles.

    unblemish export disvae_celeba.pt --method energy --out face.bundle
    unblemish train --normals SETS/brick_grey/train/good --model l2ae --minutes 2 --channels 1 \
        --geometry tiles --out brick.pt && unblemish export brick.pt --out brick.bundle  # and so on
    python benchmarks/inpainting.py --face face.bundle --checkpoint disvae_celeba.pt \
        --sets SETS --bundles brick.bundle gravel.bundle grass.bundle magnetic_tile.bundle

SETS is the --out of `cut_paste.py --grey`; a bundle is tried on the normal test images of the set
of its name. Holes hold uniform noise: a block, three rectangles, thin and thick scratches.

Faces: `faces` are decoded from random latents, the model's own range, which is kind to it; `fine`
are the same under half of the fine texture of scikit-image's gravel, which the model cannot make;
`astronaut` is the face of scikit-image's photograph, which it reconstructs to 15 dB.

A cell is PSNR of the hole's pixels / SSIM over the box around the hole, means over the images; of
the blind table PSNR of the hole / PSNR / SSIM of the whole image. `pasted` is the plain
reconstruction in the hole; `surface` the membrane that our search begins with, without a model;
`biharmonic` scikit-image's; `eq. 7` and `eq. 8` the paper's schedule. Blind, `search` is the
projection, and `filled` what `Inspector.restore` makes of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from energy_protocol import published
from numpy.typing import NDArray
from skimage import data
from skimage.metrics import structural_similarity
from skimage.restoration import inpaint_biharmonic

from unblemish.bundle import Bundle
from unblemish.images import list_images, read_image, write_image
from unblemish.report.overlay import side_by_side
from unblemish.runtime.holes import carried
from unblemish.runtime.inpainting import ClassicalInpainter
from unblemish.runtime.inspector import Inspector

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Fill = Callable[[Float, Mask], Float]

MASKS = ("block", "rectangles", "thin", "thick")
_TELEA, _STOKES = ClassicalInpainter("telea"), ClassicalInpainter("navier-stokes")


def main() -> None:
    """Print the tables, and draw the picture."""
    options = _arguments()
    tables: dict[str, list[str]] = {"known": [], "whole": [], "blind": []}
    shown = []
    for name, bundle, images in _sets(options):
        with _Fillers(bundle, options.threads) as fillers:
            for kind in MASKS:
                holes = [draw_mask(images[0].shape[0], kind, seed) for seed in range(len(images))]
                pairs = enumerate(zip(images, holes, strict=True))
                noisy = [noise_in(image, hole, seed) for seed, (image, hole) in pairs]
                found = {how: _timed(fill, noisy, holes) for how, fill in fillers.known().items()}
                blind = {how: _timed(fill, noisy, holes) for how, fill in fillers.blind().items()}
                _known_rows(tables, name, kind, images, holes, found)
                cells = [_blind_cell(made, images, holes) for made, _ in blind.values()]
                times = [f"{blind[how][1]:.0f}" for how in ("eq. 8", "filled")]
                tables["blind"].append(_line(name, kind, cells + times))
                shown.append((name, kind, images[0], noisy[0], found, blind))
    heads = {
        "known": [*found, "ms, eq. 7", "ms"],
        "whole": list(found),
        "blind": [*blind, "ms, eq. 8", "ms"],
    }
    for table, rows in tables.items():
        print(f"\n{table}\n" + _line("images", "hole", heads[table]))
        print("|" + " --- |" * (2 + len(heads[table])) + "\n" + "\n".join(rows))
    if options.picture:
        _draw(options.picture, shown)


def _known_rows(
    tables: dict[str, list[str]], name: str, kind: str, images: list[Float], holes: list[Mask],
    found: dict[str, tuple[list[Float], float]],
) -> None:  # fmt: skip
    inside, whole = [], []
    for made, _ in found.values():
        rows = list(zip(made, images, holes, strict=True))
        box = [ssim(m[_box(h)], i[_box(h)]) for m, i, h in rows]
        inside.append(f"{np.mean([psnr(*row) for row in rows]):.1f} / {np.mean(box):.3f}")
        whole.append(
            f"{np.mean([psnr(m, i) for m, i, _ in rows]):.1f} / "
            f"{np.mean([ssim(m, i) for m, i, _ in rows]):.3f}"
        )
    times = [f"{found[how][1]:.0f}" for how in ("eq. 7", "ours")]
    tables["known"].append(_line(name, kind, inside + times))
    tables["whole"].append(_line(name, kind, whole))


def _blind_cell(made: list[Float], images: list[Float], holes: list[Mask]) -> str:
    rows = list(zip(made, images, holes, strict=True))
    inside = np.mean([psnr(*row) for row in rows])
    whole = np.mean([psnr(m, i) for m, i, _ in rows])
    return f"{inside:.1f} / {whole:.1f} / {np.mean([ssim(m, i) for m, i, _ in rows]):.3f}"


class _Fillers:
    """What fills the holes of one bundle's images."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self.ours = Inspector.open(bundle, threads=threads, refine="energy")
        self.plain = Inspector.open(bundle, threads=threads, refine="none")
        opened = Bundle.open(bundle)
        seeds = opened.with_energy(lam=published(opened))
        self.paper = Inspector.open(seeds, threads=threads, refine="energy", schedule="paper")

    def __enter__(self) -> _Fillers:
        return self

    def __exit__(self, *_: Any) -> None:
        for inspector in (self.ours, self.plain, self.paper):
            inspector.close()

    def known(self) -> dict[str, Fill]:
        """By name: image (H, W, C) in [0, 1] and hole -> the image filled."""
        return {
            "pasted": lambda x, h: _in_hole(x, h, _search(self.plain, x)),
            "Telea": lambda x, h: _TELEA(x, h),
            "Navier-Stokes": lambda x, h: _STOKES(x, h),
            "biharmonic": _biharmonic,
            "surface": lambda x, h: carried(x, h),
            "eq. 7": lambda x, h: _planes(self.paper.inpaint(_flat(x), h)),
            "ours": lambda x, h: _planes(self.ours.inpaint(_flat(x), h)),
        }

    def blind(self) -> dict[str, Fill]:
        """The same without a look at the hole."""
        return {
            "image": lambda x, h: x,
            "plain": lambda x, h: _search(self.plain, x),
            "eq. 8": lambda x, h: _search(self.paper, x),
            "search": lambda x, h: _search(self.ours, x),
            "filled": lambda x, h: _planes(self.ours.restore(_flat(x)).image),
        }


def _sets(options: argparse.Namespace) -> Iterator[tuple[str, Path, list[Float]]]:
    """Name, bundle and images of every set."""
    if options.face:
        faces = decoded(options.checkpoint, options.count)
        yield "faces", options.face, faces
        yield "fine", options.face, [with_texture(f, i) for i, f in enumerate(faces)]
        yield "astronaut", options.face, [astronaut()] * options.count
    for bundle in options.bundles:
        paths = list_images(options.sets / f"{bundle.stem}_grey" / "test" / "good")
        chosen = paths[:: max(len(paths) // options.count, 1)][: options.count]
        yield bundle.stem, bundle, [_patch(path, bundle.stem) for path in chosen]


def decoded(checkpoint: Path, count: int) -> list[Float]:
    """Faces of random latents, (64, 64, 3) in [0, 1]."""
    import torch

    from unblemish.export.models.checkpoint import load_model

    z = np.random.default_rng(1).standard_normal((count, 10)).astype(np.float32)
    with torch.no_grad():
        images = load_model(checkpoint).generator(torch.from_numpy(z)).numpy()
    return [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images]


def with_texture(image: Float, index: int) -> Float:
    """Half of the fine texture of a photograph of gravel on top."""
    gravel = data.gravel().astype(np.float32) / 255
    fine = gravel - cv2.GaussianBlur(gravel, (0, 0), 4)
    height, width = image.shape[:2]
    first = 24 * index
    part = fine[first : first + height, first : first + width, None]
    return np.clip(image + 0.5 * part, 0, 1).astype(np.float32)


def astronaut() -> Float:
    """The face, aligned as the model's faces are, (64, 64, 3)."""
    face = data.astronaut()[20:180, 150:310]
    return cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _patch(path: Path, name: str) -> Float:
    """The middle of a texture, or the whole tile, (128, 128, 1)."""
    image = read_image(path)
    if name == "magnetic_tile":
        image = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
    top, left = (image.shape[0] - 128) // 2, (image.shape[1] - 128) // 2
    grey = image[top : top + 128, left : left + 128]
    return np.ascontiguousarray(grey.reshape(128, 128, -1)[:, :, :1].astype(np.float32) / 255)


def draw_mask(size: int, kind: str, seed: int) -> Mask:
    """A hole of one kind, (size, size); its parts grow with the size."""
    rng, hole, unit = np.random.default_rng(seed), np.zeros((size, size), np.uint8), size // 64
    if kind == "block":
        height, width = (int(v) * unit for v in rng.integers(14, 25, 2))
        top, left = (int(rng.integers(8 * unit, size - 8 * unit - v)) for v in (height, width))
        hole[top : top + height, left : left + width] = 1
    elif kind == "rectangles":
        for _ in range(3):
            height, width = (int(v) * unit for v in rng.integers(5, 11, 2))
            top, left = rng.integers(4, size - 4 - max(height, width), 2)
            hole[top : top + height, left : left + width] = 1
    else:
        width = unit if kind == "thin" else 5 * unit
        for _ in range(3):
            points = rng.integers(0, size, (4, 1, 2)).astype(np.int32)
            cv2.polylines(hole, [points], False, 1, width)
    return hole > 0


def noise_in(image: Float, hole: Mask, seed: int) -> Float:
    """The image with uniform noise in the hole."""
    noise = np.random.default_rng(1000 + seed).random(image.shape, np.float32)
    return np.where(hole[:, :, None], noise, image)


def psnr(made: Float, image: Float, hole: Mask | None = None) -> float:
    """Decibels, of the hole's pixels or all."""
    apart = np.square(made.astype(np.float64) - image)
    return float(-10 * np.log10(max((apart if hole is None else apart[hole]).mean(), 1e-10)))


def ssim(made: Float, image: Float) -> float:
    """Mean structural similarity, window of 7."""
    return float(structural_similarity(made, image, data_range=1.0, channel_axis=2))


def _box(hole: Mask) -> tuple[slice, slice]:
    """The box around a hole, seven pixels wide at least."""
    slices = []
    for axis in (1, 0):
        places = np.flatnonzero(hole.any(axis=axis))
        first = min(int(places[0]), len(hole) - 7)
        slices.append(slice(first, max(int(places[-1]) + 1, first + 7)))
    return slices[0], slices[1]


def _timed(fill: Fill, images: list[Float], holes: list[Mask]) -> tuple[list[Float], float]:
    """Results, and the median time in ms."""
    made, seconds = [], []
    for image, hole in zip(images, holes, strict=True):
        began = time.perf_counter()
        made.append(fill(image, hole))
        seconds.append(time.perf_counter() - began)
    return made, 1000 * float(np.median(seconds))


def _search(inspector: Inspector, image: Float) -> Float:
    return _planes(inspector.search(_flat(image)).restored)


def _biharmonic(image: Float, hole: Mask) -> Float:
    made = inpaint_biharmonic(np.where(hole[:, :, None], 0, image), hole, channel_axis=2)
    return np.clip(made, 0, 1).astype(np.float32)


def _in_hole(image: Float, hole: Mask, made: Float) -> Float:
    return np.where(hole[:, :, None], made, image)


def _flat(image: Float) -> Float:
    return np.ascontiguousarray(image[:, :, 0]) if image.shape[2] == 1 else image


def _planes(image: Float) -> Float:
    return image[:, :, None] if image.ndim == 2 else image


def _line(name: str, kind: str, cells: list[str]) -> str:
    return "| " + " | ".join([name, kind, *cells]) + " |"


def _draw(path: Path, shown: list[Any]) -> None:
    """One row of every set and two kinds of hole."""
    wanted = {"faces": "thick", "fine": "block", "brick": "thick", "gravel": "thin"}
    rows = []
    for name, kind, image, noisy, found, blind in shown:
        if wanted.get(name) != kind:
            continue
        panels = [("original", image), ("to be filled", noisy)]
        panels += [(how, found[how][0][0]) for how in ("pasted", "Telea", "eq. 7", "ours")]
        panels += [("blind: eq. 8", blind["eq. 8"][0][0]), ("blind: ours", blind["filled"][0][0])]
        titled = [(title if not rows else "", _flat(p)) for title, p in panels]
        rows.append(side_by_side(titled, height=112))
    width = min(row.shape[1] for row in rows)
    white = np.full((8, width, 3), 255, np.uint8)
    write_image(path, np.concatenate([part for row in rows for part in (row[:, :width], white)]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--face", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--bundles", nargs="*", type=Path, default=[])
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
