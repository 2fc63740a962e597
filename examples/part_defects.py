"""Defects of the rendered part: each changes the surface, and light falls on it as on the rest.

Every function takes a `Surface` and a random generator and returns the changed surface together
with the coverage of the defect (1 inside, 0 outside), on the same fine grid. Lengths are in native
pixels of the picture, `FINE` grid cells to a pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Random = np.random.Generator

SIZE = 256  # native side of a picture, pixels
FINE = 3  # grid cells per native pixel


@dataclass(frozen=True)
class Surface:
    """The part in its own frame; every field is (SIZE * FINE, SIZE * FINE) float32.

    Args:
        height: above the plate's face, native pixels (negative: below).
        albedo: reflectivity, 1 for clean metal.
        solid: 1 on the plate, 0 on the ground beside it.
        bore: 1 inside a bore or slot, where no light comes back.
        rough: 0 on brushed metal, 1 where a break scatters the light.
    """

    height: Field
    albedo: Field
    solid: Field
    bore: Field
    rough: Field


Defect = Callable[[Surface, Random], tuple[Surface, Field]]


def grid() -> tuple[Field, Field]:
    """Coordinates of the fine grid: u to the right, v down, native pixels, 0 at the centre."""
    axis = (np.arange(SIZE * FINE, dtype=np.float32) + 0.5) / FINE - SIZE / 2
    u, v = np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))
    return u, v


def coverage(distance: Field) -> Field:
    """Antialiased inside of a signed distance (negative inside, native pixels)."""
    return np.asarray(np.clip(0.5 - distance * FINE, 0, 1), dtype=np.float32)


def polyline_distance(points: NDArray[np.float64]) -> Field:
    """Distance of every grid cell to a polyline (n, 2), native pixels."""
    u, v = grid()
    nearest = np.full(u.shape, np.inf, np.float32)
    for (au, av), (bu, bv) in itertools.pairwise(points):
        du, dv = bu - au, bv - av
        along = ((u - au) * du + (v - av) * dv) / max(du * du + dv * dv, 1e-9)
        along = np.clip(along, 0, 1)
        nearest = np.minimum(nearest, np.hypot(u - au - along * du, v - av - along * dv))
    return nearest


def scratch(surface: Surface, random: Random) -> tuple[Surface, Field]:
    """A tool slipped: a long, slightly bent groove with a bright floor and a raised burr."""
    points = _slide(surface, random)
    while _share_on_face(surface, points) < 0.8:
        points = _slide(surface, random)
    width = random.uniform(0.9, 1.6)
    distance = polyline_distance(points)
    inside = coverage(distance - width) * _face(surface)
    groove = -0.9 * np.clip(1 - distance / width, 0, 1) + 0.25 * np.exp(-((distance - width) ** 2))
    return replace(
        surface,
        height=surface.height + np.float32(random.uniform(0.9, 1.4)) * groove * inside,
        albedo=surface.albedo * (1 + random.uniform(0.25, 0.5) * inside),
    ), inside


def dent(surface: Surface, random: Random) -> tuple[Surface, Field]:
    """Something fell on it: one or two dimples, each the cap of a sphere with a crisp rim."""
    height, total = surface.height.copy(), np.zeros_like(surface.height)
    u, v = grid()
    first = _on_face(surface, random)
    for index in range(random.integers(1, 3)):
        centre = first + index * random.uniform(-22, 22, 2)
        radius, oval, turn = (
            random.uniform(4.5, 9.5),
            random.uniform(0.7, 1.0),
            random.uniform(0, 3),
        )
        a = (u - centre[0]) * np.cos(turn) + (v - centre[1]) * np.sin(turn)
        b = (v - centre[1]) * np.cos(turn) - (u - centre[0]) * np.sin(turn)
        rho = np.hypot(a, b / oval) / radius
        inside = coverage((rho - 1) * radius) * _face(surface)
        height -= (
            np.float32(random.uniform(0.22, 0.34) * radius) * np.clip(1 - rho**2, 0, 1) * inside
        )
        total = np.maximum(total, inside)
    return replace(surface, height=height), total


def stain(surface: Surface, random: Random) -> tuple[Surface, Field]:
    """Coolant dried on it: a flat blotch with a darker rim."""
    u, v = grid()
    centre = _on_face(surface, random)
    radius = random.uniform(9, 20)
    angle = np.arctan2(v - centre[1], u - centre[0])
    wobble = sum(
        random.uniform(-0.5, 0.5) / k * np.cos(k * angle + random.uniform(0, 2 * np.pi))
        for k in range(2, 6)
    )
    distance = np.hypot(u - centre[0], v - centre[1]) - radius * (1 + 0.45 * wobble)
    distance = distance.astype(np.float32)
    inside = coverage(distance) * surface.solid * (1 - surface.bore)
    rim = np.exp(-((distance + 1.5) ** 2) / 3)
    dark = random.uniform(0.2, 0.34) + 0.16 * rim + 0.05 * _cloud(random, 7)
    return replace(surface, albedo=surface.albedo * (1 - dark * inside)), inside


def chip(surface: Surface, random: Random) -> tuple[Surface, Field]:
    """The edge broke away: a jagged bite with a rough, sloping floor."""
    edge = _edge_point(surface, random)
    u, v = grid()
    angle = np.arctan2(v - edge[1], u - edge[0])
    radius = random.uniform(7, 13)
    knots = np.append(corners := random.uniform(0.65, 1.25, 9), corners[0])
    outline = radius * np.interp(angle, np.linspace(-np.pi, np.pi, 10), knots)
    distance = (np.hypot(u - edge[0], v - edge[1]) - outline).astype(np.float32)
    inside = coverage(distance) * surface.solid * (1 - surface.bore)
    depth = np.clip(-distance, 0, None)
    floor = -0.8 * depth - 1.0 + 1.1 * _cloud(random, 2.0) + 0.6 * _cloud(random, 0.9)
    height = surface.height * (1 - inside) + np.minimum(surface.height, floor) * inside
    return replace(
        surface,
        height=height.astype(np.float32),
        albedo=surface.albedo * (1 - 0.35 * inside),
        rough=np.maximum(surface.rough, inside),
    ), inside


def crack(surface: Surface, random: Random) -> tuple[Surface, Field]:
    """It tore: a dark zigzag that begins at an edge or a bore and forks once."""
    start = _edge_point(surface, random, bores=random.random() < 0.6)
    heading = _inwards(surface, start)
    trunk = _walk(start, heading, random, steps=int(random.integers(9, 15)))
    fork = trunk[len(trunk) // 2]
    branch = _walk(
        fork, heading + random.choice([-0.8, 0.8]), random, steps=int(random.integers(3, 7))
    )
    width = random.uniform(0.85, 1.25)
    distance = np.minimum(polyline_distance(trunk), polyline_distance(branch) + 0.25)
    inside = coverage(distance - width) * surface.solid * (1 - surface.bore)
    return replace(
        surface,
        height=surface.height - 0.8 * np.clip(1 - distance / width, 0, 1) * inside,
        albedo=surface.albedo * (1 - random.uniform(0.55, 0.75) * inside),
    ), inside


DEFECTS: dict[str, Defect] = {
    "scratch": scratch,
    "dent": dent,
    "stain": stain,
    "chip": chip,
    "crack": crack,
}


def _face(surface: Surface) -> Field:
    """1 where there is plain metal to be damaged."""
    return surface.solid * (1 - surface.bore)


def _slide(surface: Surface, random: Random) -> NDArray[np.float64]:
    """Points of a slightly bent line, 30 to 90 pixels long, that starts on the face."""
    length, bend = random.uniform(30, 90), random.uniform(-0.35, 0.35)
    heading = random.uniform(0, 2 * np.pi) + bend * np.linspace(0, 1, 9)
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / 8
    steps[0] = 0
    return _on_face(surface, random) + np.cumsum(steps, axis=0)


def _share_on_face(surface: Surface, points: NDArray[np.float64]) -> float:
    cells = ((points + SIZE / 2) * FINE).astype(int)
    inside = ((cells >= 0) & (cells < SIZE * FINE)).all(axis=1)
    columns, rows = np.clip(cells, 0, SIZE * FINE - 1).T
    return float((_face(surface)[rows, columns] * inside).mean())


def _on_face(surface: Surface, random: Random) -> NDArray[np.float64]:
    flat = (surface.solid > 0.5) & (surface.bore < 0.5) & (surface.height > -0.01)
    safe = cv2.erode(flat.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=5 * FINE)
    return _pick(safe > 0, random)


def _edge_point(surface: Surface, random: Random, *, bores: bool = False) -> NDArray[np.float64]:
    shape = (surface.bore if bores else surface.solid) > 0.5
    inner = cv2.erode(shape.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return _pick(shape & ~inner, random)


def _pick(where: NDArray[np.bool_], random: Random) -> NDArray[np.float64]:
    rows, columns = np.nonzero(where)
    index = random.integers(rows.size)
    return (np.array([columns[index], rows[index]]) + 0.5) / FINE - SIZE / 2


def _inwards(surface: Surface, point: NDArray[np.float64]) -> float:
    """Direction from `point` towards plain metal: up the slope of the blurred face."""
    face = cv2.GaussianBlur(_face(surface), (0, 0), 5 * FINE)
    column, row = ((point + SIZE / 2) * FINE).astype(int)
    dv, du = np.gradient(face[row - 2 : row + 3, column - 2 : column + 3])
    return float(np.arctan2(dv.mean(), du.mean()))


def _walk(
    start: NDArray[np.float64], heading: float, random: Random, *, steps: int
) -> NDArray[np.float64]:
    turns = heading + np.clip(np.cumsum(random.normal(0, 0.35, steps)), -0.6, 0.6)
    turns += random.choice([-0.5, 0.5], steps) * random.random(steps)
    lengths = random.uniform(2.5, 5.5, steps)
    path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=1) * lengths[:, None], axis=0)
    return np.concatenate([start[None], start + path])


def _cloud(random: Random, scale: float) -> Field:
    """Smooth noise of unit deviation; `scale` in native pixels."""
    side = max(4, int(SIZE / scale))
    coarse = random.standard_normal((side, side)).astype(np.float32)
    shape = (SIZE * FINE, SIZE * FINE)
    cloud = cv2.resize(coarse, shape, interpolation=cv2.INTER_CUBIC)
    return np.asarray(cloud / cloud.std(), dtype=np.float32)
