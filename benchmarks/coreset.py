"""Time the coreset of PatchCore against the plain choice in NumPy, on the same rows in one run.

    python benchmarks/coreset.py [--normals DIR --weights FILE] [--images 500] [--threads N]

With DIR and FILE: layers 2 and 3 of the ResNet18 of `f2pad_eager.py` on images of DIR at 224 x 224,
28 x 28 x 384 features each. Without: random features that vary in 20 directions and a little in
all. A plain step costs the same from first to last, so NumPy makes `--steps` of them, the median is
scaled up, and what ours takes to project is added. `same` counts how many of its first choices are
ours; rounding may part them, and then they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.features import coreset as module
from unblemish.calibration.features.blas import one_thread
from unblemish.calibration.features.patchcore import PROJECT
from unblemish.kernels.k_centre import NumpyKCentre

Features = NDArray[np.float32]
SIDE, CHANNELS, BATCH = 28, 384, 8


def synthetic(images: int) -> Features:
    """(images 28 28, 384): a plane of 20 directions, rectified, and a little of all others."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20, CHANNELS)).astype(np.float32)
    out = np.empty((images, SIDE * SIDE, CHANNELS), np.float32)
    for image in out:
        place = rng.standard_normal((len(image), 20), np.float32)
        np.maximum(place @ directions, 0, out=image)
        image += 0.3 * rng.standard_normal(image.shape, np.float32)
    return out.reshape(-1, CHANNELS)


def of_images(folder: Path, weights: Path, images: int) -> Features:
    """(images 28 28, 384) of the first images of a folder."""
    import cv2
    import f2pad_eager as eager
    import torch

    from unblemish.images import list_images, read_image

    paths = list_images([folder])[:images]
    if len(paths) < images:
        raise SystemExit(f"{folder} holds {len(paths)} images, fewer than --images {images}.")
    model = eager.PatchCore.__new__(eager.PatchCore)  # its features alone, nothing learned
    model.network = eager.ResNet18(weights)
    out = []
    with torch.no_grad():
        for first in range(0, images, BATCH):
            batch = [cv2.resize(read_image(p), (224, 224)) for p in paths[first : first + BATCH]]
            x = torch.cat([eager.normalised(image) for image in batch])
            out.append(model.features(x).numpy().reshape(-1, CHANNELS))
    return np.concatenate(out)


def _save(path: Path, options: argparse.Namespace) -> None:
    if options.normals is None:
        np.save(path, synthetic(options.images))
    else:
        np.save(path, of_images(options.normals, options.weights, options.images))


def peak() -> float:
    """The most memory this process has held, MB; NaN where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def by_numpy(features: Features, first: int, count: int, steps: int) -> tuple[float, list[int]]:
    """What `count` rows would take NumPy, s, and the first ones that it chooses."""
    begin = time.perf_counter()
    rows = module._projected(features, PROJECT, np.random.default_rng(0))
    projecting = time.perf_counter() - begin
    search, found, seconds = NumpyKCentre(rows, first), [], []
    for _ in range(min(steps, count - 1)):
        begin = time.perf_counter()
        found += search.choose(1).tolist()
        seconds.append(time.perf_counter() - begin)
    return projecting + statistics.median(seconds) * (count - 1), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--normals", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--threads", type=int, default=1, help="of both sides")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if (options.normals is None) != (options.weights is None):
        parser.error("--normals and --weights belong together.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        # In a process of its own, whose memory does not count here.
        child = multiprocessing.get_context("spawn").Process(target=_save, args=(path, options))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)
        features = np.load(path)
    # Several threads of BLAS: as many as OMP_NUM_THREADS says.
    with one_thread() if options.threads == 1 else contextlib.nullcontext():
        measure(features, options)


def measure(features: Features, options: argparse.Namespace) -> None:
    """Print a row for each share."""
    loaded = peak()
    print(
        f"{len(features)} features of {features.shape[1]} numbers, {features.nbytes / 1e6:.0f} MB; "
        f"projected to {PROJECT}; {options.threads} thread(s)\n"
    )
    print("| rows | ours, s | plain NumPy, s | ratio | peak above the features, MB | same |")
    print("|---:|---:|---:|---:|---:|---:|")
    for share in options.shares:
        count = round(share * len(features))
        begin = time.perf_counter()
        chosen = module.coreset(features, count, seed=0, project=PROJECT, threads=options.threads)
        ours = time.perf_counter() - begin
        used = peak() - loaded
        plain, found = by_numpy(features, int(chosen[0]), count, options.steps)
        same = int((np.array(found) == chosen[1 : 1 + len(found)]).sum())
        print(
            f"| {count} | {ours:.1f} | {plain:.0f} | {plain / ours:.1f} | {used:.0f} | "
            f"{same} of {len(found)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
