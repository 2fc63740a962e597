"""Write the cut-paste data sets of seed 003: normal images with exactly known defects.

    python benchmarks/cut_paste.py OUT --tile MAGNETIC_TILE [--sets ...] [--size 224] [--grey]

Every set is a folder in MVTec AD's layout: train/good, test/good (the normal images before the
defects went in), test/own and test/real (defects with masks of our generators, and of the real
defects of MAGNETIC_TILE, randomly resized and turned), ground_truth/<kind>. brick, gravel and grass
are crops of scikit-image's photographs, magnetic_tile are whole photographs resized to --size.
Training and test crops come from disjoint areas, training and test photographs from different
tiles. Defects: x = (1 - m) n + m a (eq. 16), one random colour a per image, every pixel at least
--contrast of white away from n; areas from 0 to 13 % of the image, as many in each of the five
groups of figure 7. `--grey` keeps one channel; else colours are random in RGB, as in the paper.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.defects import SHAPES, draw_shape
from unblemish.calibration.defects.fills import with_contrast
from unblemish.images import list_images, read_image, write_image

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TEXTURES = ("brick", "gravel", "grass")
GROUPS = ((0.0015, 0.02), (0.02, 0.04), (0.04, 0.06), (0.06, 0.08), (0.08, 0.13))  # figure 7
KINDS = ("own", "real")
_TRAIN_SHARE = 288 / 512  # columns of a texture's photograph that training crops come from
_ATTEMPTS = 200


def main() -> None:
    """Write the sets that were asked for and list them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tile", type=Path, required=True, help="magnetic tiles, MVTec AD layout")
    parser.add_argument("--sets", nargs="+", default=["magnetic_tile", *TEXTURES])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--train", type=int, default=240, help="normal images for training")
    parser.add_argument("--test", type=int, default=54, help="images with a defect")
    parser.add_argument("--contrast", type=float, default=0.2, help="share of white")
    parser.add_argument("--grey", action="store_true")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    masks = real_masks(options.tile)
    print("| set | train | test | mean area | areas | sha256 |\n|" + " --- |" * 6)
    for name in options.sets:
        rng = np.random.default_rng([options.seed, *name.encode()])
        normals = tile_images(options) if name == "magnetic_tile" else texture_crops(name, options)
        train, test = normals
        folder = options.out / (f"{name}_grey" if options.grey else name)
        for index, image in enumerate(train):
            _write(folder / "train" / "good" / f"{index:03d}.png", image)
        areas = [_write_defect(folder, i, n, masks, options, rng) for i, n in enumerate(test)]
        ends = f"{100 * min(areas):.2f}-{100 * max(areas):.2f} %"
        line = [name, len(train), len(test), f"{100 * np.mean(areas):.2f} %", ends, digest(folder)]
        print("| " + " | ".join(map(str, line)) + " |", flush=True)


def tile_images(options: Any) -> tuple[list[Bytes], list[Bytes]]:
    """Photographs of magnetic tiles at (size, size): training ones and test ones."""
    found = []
    for part, count in (("train", options.train), ("test", options.test)):
        paths = list_images([options.tile / part / "good"])
        chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
        frames = (_coloured(_grey(read_image(paths[i]))) for i in chosen)
        found.append([_finish(_resized(frame, options.size), options) for frame in frames])
    return found[0], found[1]


def texture_crops(name: str, options: Any) -> tuple[list[Bytes], list[Bytes]]:
    """Random crops of a photograph, half of them mirrored: training left, test right."""
    from skimage import data

    photograph = _coloured(_grey(getattr(data, name)()))
    edge = round(_TRAIN_SHARE * photograph.shape[1])
    rng = np.random.default_rng([options.seed, 1, *name.encode()])
    areas = (photograph[:, :edge], photograph[:, edge:])
    crops = [
        [_finish(_crop(area, options.size, rng), options) for _ in range(count)]
        for area, count in zip(areas, (options.train, options.test), strict=True)
    ]
    return crops[0], crops[1]


def real_masks(tile: Path) -> list[Mask]:
    """Masks of the real defects, cut to what they cover."""
    masks = []
    for path in list_images([tile / "ground_truth" / k for k in ("blowhole", "break", "crack")]):
        mask = _grey(read_image(path)) > 127
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            masks.append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return masks


def sized_mask(shape: Mask, area: float, size: int, rng: np.random.Generator) -> Mask | None:
    """Resize (its sides by up to 1.5 apart), turn and place `shape` so that it covers `area` px.

    Returns: (size, size), or None where the shape does not fit the image at that area.
    """
    turned = np.rot90(shape, int(rng.integers(4)))
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    scale = np.sqrt(area / max(int(turned.sum()), 1))
    height, width = (
        max(1, round(side * scale * by))
        for side, by in zip(turned.shape, (stretch, 1 / stretch), strict=True)
    )
    if max(height, width) > size:
        return None
    small = cv2.resize(turned.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros((size, size), np.bool_)
    top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    mask[top : top + height, left : left + width] = small > 0.5
    return mask


def draw_mask(
    kind: str, masks: list[Mask], share: tuple[float, float], size: int, rng: np.random.Generator
) -> Mask:
    """A mask of `kind` that covers a share of the image within the interval."""
    for _ in range(_ATTEMPTS):
        if kind == "real":
            shape = masks[rng.integers(len(masks))]
        else:
            whole = draw_shape(SHAPES[rng.integers(len(SHAPES))], 256, 256, rng)
            rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
            shape = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        mask = sized_mask(shape, rng.uniform(*share) * size**2, size, rng)
        if mask is not None and share[0] <= mask.mean() < share[1]:
            return mask
    raise RuntimeError(f"no mask of kind '{kind}' fits {size} px at areas {share}.")


def paste(image: Bytes, mask: Mask, contrast: float, rng: np.random.Generator) -> Bytes:
    """Fill the mask with one random colour, far from what was there (eq. 16)."""
    out = image.copy()
    pixels = image[mask].astype(np.float64).reshape(int(mask.sum()), -1)
    colour = np.rint(rng.uniform(0, 255, pixels.shape[1]))
    painted = with_contrast(colour, pixels, float(np.ceil(contrast * 255)), 255.0, rng)
    out[mask] = painted.astype(np.uint8).reshape(out[mask].shape)
    return out


def digest(folder: Path) -> str:
    """Digest of all pixels of a set, to see that two machines work on the same one."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        total.update(str(path.relative_to(folder)).encode() + read_image(path).tobytes())
    return total.hexdigest()[:12]


def _write_defect(
    folder: Path, index: int, normal: Bytes, masks: list[Mask], options: Any, rng: Any
) -> float:
    kind = KINDS[index % 2]
    mask = draw_mask(kind, masks, GROUPS[index % len(GROUPS)], options.size, rng)
    image = paste(normal, mask, options.contrast, rng)
    _write(folder / "test" / "good" / f"{index:03d}.png", normal)
    _write(folder / "test" / kind / f"{index:03d}.png", image)
    truth = (255 * mask).astype(np.uint8)
    _write(folder / "ground_truth" / kind / f"{index:03d}_mask.png", truth)
    return float(mask.mean())


def _write(path: Path, image: Bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)


def _crop(area: Bytes, size: int, rng: np.random.Generator) -> Bytes:
    if min(area.shape[:2]) < size:
        raise SystemExit(f"crops of {size} px do not fit an area of {area.shape[:2]} px.")
    top = rng.integers(0, area.shape[0] - size + 1)
    left = rng.integers(0, area.shape[1] - size + 1)
    crop = area[top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, ::-1] if rng.integers(2) else crop)


def _resized(frame: Bytes, size: int) -> Bytes:
    return np.asarray(cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _grey(image: NDArray[Any]) -> Bytes:
    return np.asarray(image if image.ndim == 2 else image[..., :3].mean(axis=2), np.uint8)


def _coloured(image: Bytes) -> Bytes:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)


def _finish(image: Bytes, options: Any) -> Bytes:
    return np.ascontiguousarray(image[..., 0]) if options.grey else image


def iterate(folder: Path) -> Iterator[tuple[str, Bytes, Mask]]:
    """Kind, image and mask of every defective image of a folder in MVTec AD's layout."""
    for kind in sorted(path.name for path in (folder / "ground_truth").iterdir()):
        for path in list_images([folder / "test" / kind]):
            truth = read_image(folder / "ground_truth" / kind / f"{path.stem}_mask.png")
            yield kind, np.asarray(read_image(path), np.uint8), truth > 127


if __name__ == "__main__":
    main()
