"""Render photographs of a machined plate: normal ones, and defective ones with exact masks.

    python examples/render_parts.py OUT --train 500 --calibrate 60 --per-defect 6 --good 10

writes the layout of MVTec AD: `train/good`, `calibrate/good`, `test/<defect>`, `test/good` and
`ground_truth/<defect>/<name>_mask.png`. The same seed gives the same pictures.

The plate is a height field (face, chamfers, countersunk bores, slot, engraved mark) under one near
lamp. A normal part varies in seven ways: place (2), turn, the lamp's place (2), its power, and the
focus; on top lie the brush marks, which are new on each part, and the camera's noise. A defect
changes the height field or its reflectivity before the light falls on it. A pixel belongs to the
mask where the defect covers at least half of it.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from part_defects import (
    DEFECTS,
    FINE,
    SIZE,
    Field,
    Random,
    Surface,
    coverage,
    grid,
    polyline_distance,
)

Picture = NDArray[np.uint8]

HALF = (101.0, 92.0)  # half sides of the plate, native pixels
CORNER = 15.0  # its corner radius
CHAMFER = 5.0
BORES = (
    (0.0, 0.0, 33.0, 6.0),
    *((su * 77.0, sv * 68.0, 8.5, 6.5) for su in (-1, 1) for sv in (-1, 1)),
)
SLOT = (0.0, -68.0, 27.0, 6.5, 3.0)  # centre, half length, radius, chamfer
LAMP_HEIGHT = 300.0
BRUSH = 0.030  # deviation of the brush marks, share of the light that comes back
NOISE = 0.006  # deviation of the camera's noise at mid grey, share of full scale


@dataclass(frozen=True)
class Shot:
    """How one photograph was taken: all that varies between normal parts but brush and noise."""

    shift: tuple[float, float]  # native pixels
    turn: float  # degrees
    lamp: tuple[float, float]  # place of the lamp above the picture, native pixels from its centre
    power: float
    focus: float  # Gaussian sigma, native pixels


def draw_shot(random: Random) -> Shot:
    """Draw the circumstances of a normal photograph."""
    return Shot(
        shift=(random.uniform(-3, 3), random.uniform(-3, 3)),
        turn=random.uniform(-2.5, 2.5),
        lamp=(random.uniform(-75, -15), random.uniform(-120, -60)),
        power=random.uniform(0.93, 1.07),
        focus=random.uniform(0.45, 0.65),
    )


@functools.cache
def clean_surface() -> Surface:
    """The plate as designed."""
    u, v = grid()
    plate = _rounded_box(u, v, *HALF, CORNER)
    height = -np.clip(plate + CHAMFER, 0, CHAMFER)
    bore = np.zeros_like(u)
    for distance, chamfer in _openings(u, v):
        height = np.minimum(height, -np.clip(chamfer - distance, 0, chamfer))
        bore = np.maximum(bore, coverage(distance))
    height -= 0.75 * _engraving()
    ones = np.ones_like(u)
    return Surface(height.astype(np.float32), ones, coverage(plate), bore, np.zeros_like(u))


def photograph(surface: Surface, shot: Shot, random: Random) -> Picture:
    """Take a picture of `surface`: (SIZE, SIZE) uint8."""
    brushed = replace(
        surface, albedo=surface.albedo * (1 + _brush_marks(random) * (1 - surface.rough))
    )
    light = _shade(_place(brushed, shot), shot)
    seen = cv2.resize(light, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    seen = cv2.GaussianBlur(seen, (0, 0), shot.focus)
    grey = np.clip(seen, 0, 1) ** (1 / 1.6)
    noise = random.standard_normal(grey.shape) * NOISE * np.sqrt(0.3 + grey)
    return np.asarray(np.clip(grey + noise, 0, 1) * 255 + 0.5, dtype=np.uint8)


def mask_of(inside: Field, shot: Shot) -> Picture:
    """The mask of a defect as that shot sees it: 255 where it covers half a pixel or more."""
    moved = _warp(inside, shot)
    share = cv2.resize(moved, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.where(share >= 0.5, 255, 0).astype(np.uint8)


def normal_part(seed: tuple[int, ...]) -> Picture:
    """Photograph one normal part."""
    random = np.random.default_rng(seed)
    return photograph(clean_surface(), draw_shot(random), random)


def defective_part(defect: str, seed: tuple[int, ...]) -> tuple[Picture, Picture]:
    """Photograph one defective part; returns picture and mask."""
    random = np.random.default_rng(seed)
    shot = draw_shot(random)
    while True:
        surface, inside = DEFECTS[defect](clean_surface(), random)
        mask = mask_of(inside, shot)
        if np.count_nonzero(mask) >= 25:
            return photograph(surface, shot, random), mask


def _rounded_box(u: Field, v: Field, half_u: float, half_v: float, radius: float) -> Field:
    qu, qv = np.abs(u) - half_u + radius, np.abs(v) - half_v + radius
    outside = np.hypot(np.maximum(qu, 0), np.maximum(qv, 0))
    return np.asarray(outside + np.minimum(np.maximum(qu, qv), 0) - radius, dtype=np.float32)


def _openings(u: Field, v: Field) -> list[tuple[Field, float]]:
    openings = [(np.hypot(u - cu, v - cv) - radius, chamfer) for cu, cv, radius, chamfer in BORES]
    cu, cv, half, radius, chamfer = SLOT
    along = np.maximum(np.abs(u - cu) - half, 0)
    openings.append((np.hypot(along, v - cv) - radius, chamfer))
    return openings


def _engraving() -> Field:
    """The mark 'UN-42', drawn with a round cutter. 1 at the bottom of the cut."""
    turn = np.linspace(0, np.pi, 9)
    bowl = np.stack([4 + 4 * np.cos(turn), 10 + 4 * np.sin(turn)], axis=1)[::-1]
    head = np.stack([4 - 4 * np.cos(turn * 1.15), 4 - 4 * np.sin(turn * 1.15)], axis=1)
    glyphs = (
        [(0, 0), *bowl, (8, 0)],
        [(0, 14), (0, 0), (8, 14), (8, 0)],
        [(0.5, 7), (6.5, 7)],
        [(6.5, 14), (6.5, 0), (0, 10), (9, 10)],
        [*head, (0, 14), (8, 14)],
    )
    cut = np.full((SIZE * FINE, SIZE * FINE), np.inf, np.float32)
    for index, glyph in enumerate(glyphs):
        place = np.array([-31.0 + 13.0 * index, 59.0])
        cut = np.minimum(cut, polyline_distance(np.array(glyph, dtype=float) + place))
    return np.asarray(np.clip(1 - (cut / 1.15) ** 2, 0, 1), dtype=np.float32)


def _brush_marks(random: Random) -> Field:
    fine = random.standard_normal((SIZE * FINE, SIZE)).astype(np.float32)
    streaks = cv2.GaussianBlur(fine, (0, 0), sigmaX=22, sigmaY=1.0)
    streaks = streaks + 1.05 * cv2.GaussianBlur(fine[::-1], (0, 0), sigmaX=60, sigmaY=4)
    wide = cv2.resize(streaks, (SIZE * FINE, SIZE * FINE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(BRUSH * wide / wide.std(), dtype=np.float32)


def _warp(field: Field, shot: Shot, outside: float = 0.0) -> Field:
    centre = SIZE * FINE / 2 - 0.5
    motion = cv2.getRotationMatrix2D((centre, centre), -shot.turn, 1.0)
    motion[:, 2] += np.array(shot.shift) * FINE
    side = (SIZE * FINE, SIZE * FINE)
    moved = cv2.warpAffine(field, motion, side, flags=cv2.INTER_LINEAR, borderValue=outside)
    return np.asarray(moved, dtype=np.float32)


def _place(surface: Surface, shot: Shot) -> Surface:
    return Surface(
        height=_warp(surface.height, shot, -CHAMFER),
        albedo=_warp(surface.albedo, shot, 1.0),
        solid=_warp(surface.solid, shot),
        bore=_warp(surface.bore, shot),
        rough=_warp(surface.rough, shot),
    )


def _shade(surface: Surface, shot: Shot) -> Field:
    """Light that reaches the camera, which looks straight down from afar."""
    x, y = grid()
    smooth = cv2.GaussianBlur(surface.height, (0, 0), 0.35 * FINE)
    slope_y, slope_x = np.gradient(smooth, 1 / FINE)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    to_lamp = np.stack([shot.lamp[0] - x, shot.lamp[1] - y, np.full_like(x, LAMP_HEIGHT)])
    far = np.sqrt((to_lamp**2).sum(axis=0))
    to_lamp /= far
    facing = np.clip(up * (to_lamp[2] - slope_x * to_lamp[0] - slope_y * to_lamp[1]), 0, None)
    power = shot.power * (LAMP_HEIGHT / far) ** 2
    metal = power * (0.10 + 0.34 * facing + _gloss(surface, shot, to_lamp, (slope_x, slope_y), up))
    inside = 0.035 + 0.05 * power * cv2.GaussianBlur(1 - surface.bore, (0, 0), 5 * FINE)
    metal = metal * surface.albedo * (1 - surface.bore) + inside * surface.bore
    ground = power * 0.075 * _shadow(surface, shot)
    light = metal * surface.solid + ground * (1 - surface.solid)
    return np.asarray(light, dtype=np.float32)


def _gloss(
    surface: Surface,
    shot: Shot,
    to_lamp: Field,
    slope: tuple[Field, Field],
    up: Field,
) -> Field:
    """Gloss of metal brushed along u: a narrow lobe along the marks, a wide one across (Ward)."""
    half = to_lamp + np.array([0, 0, 1], np.float32)[:, None, None]
    half /= np.sqrt((half**2).sum(axis=0))
    turn = np.deg2rad(shot.turn)
    dx, dy = half[0] / half[2] + slope[0], half[1] / half[2] + slope[1]
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = dy * np.cos(turn) - dx * np.sin(turn)
    sharp = 1 - 0.8 * surface.rough
    lobe = np.exp(-((along / 0.17) ** 2) - (across / 0.55) ** 2)
    return np.asarray(0.42 * lobe * up * sharp, dtype=np.float32)


def _shadow(surface: Surface, shot: Shot) -> Field:
    """1 in the light, less where the plate keeps the lamp from the ground."""
    away = -np.array(shot.lamp) / LAMP_HEIGHT * 14 * FINE
    motion = np.array([[1, 0, away[0]], [0, 1, away[1]]], np.float64)
    side = (SIZE * FINE, SIZE * FINE)
    cast = cv2.GaussianBlur(cv2.warpAffine(surface.solid, motion, side), (0, 0), 2.5 * FINE)
    near = cv2.GaussianBlur(surface.solid, (0, 0), 3.5 * FINE)
    return np.asarray(1 - 0.6 * cast - 0.25 * near, dtype=np.float32)


def write(path: Path, picture: Picture) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"cannot write {path}")


def render(out: Path, *, train: int, calibrate: int, good: int, per_defect: int, seed: int) -> None:
    """Write the whole data set. Every picture has its own seed: more pictures change none."""
    for part, (folder, count) in enumerate(
        (("train/good", train), ("calibrate/good", calibrate), ("test/good", good))
    ):
        for index in range(count):
            write(out / folder / f"{index:04d}.png", normal_part((seed, part, index)))
    for kind, defect in enumerate(DEFECTS):
        for index in range(per_defect):
            picture, mask = defective_part(defect, (seed, 10 + kind, index))
            write(out / "test" / defect / f"{index:04d}.png", picture)
            write(out / "ground_truth" / defect / f"{index:04d}_mask.png", mask)


def main() -> None:
    """Read the arguments and render."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--calibrate", type=int, default=60)
    parser.add_argument("--good", type=int, default=10)
    parser.add_argument("--per-defect", type=int, default=6)
    parser.add_argument("--seed", type=int, default=7)
    wanted = parser.parse_args()
    render(
        wanted.out,
        train=wanted.train,
        calibrate=wanted.calibrate,
        good=wanted.good,
        per_defect=wanted.per_defect,
        seed=wanted.seed,
    )


if __name__ == "__main__":
    main()
