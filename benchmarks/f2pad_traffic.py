"""What F2PAD puts on the GPU for a frame, and what crosses the bus.

    python benchmarks/f2pad_traffic.py BUNDLE IMAGES ... [--most 8] [--double] [--schedule paper]

Counts of the second inspection of every frame, when all is in place: passes of the extractor by
batch and size, launches, graphs replayed, waits, bytes up and down. With --double the kernels run
on the host, as in the tests, slowly: the counts are those of a GPU. `host` is how long one core of
the CPU is busy with the same inspection outside of the extractor and the distances, which no GPU
makes less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from unblemish.bundle import Bundle
from unblemish.images import list_images, read_image
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.driver import Driver, Graph
from unblemish.runtime.backends import open_backend
from unblemish.runtime.backends.onnxruntime import OrtProgram
from unblemish.runtime.detectors.padim import Padim
from unblemish.runtime.detectors.padim_low_rank import LowRankPadim
from unblemish.runtime.detectors.patchcore import PatchCore
from unblemish.runtime.device.detectors.features import FeaturePass
from unblemish.runtime.inspector import Inspector

_TOOLS = Path(__file__).resolve().parents[1] / "tests" / "tools"


class Counted:
    """A driver that counts."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def launch(self, kernel: Any, grid: Any, values: Any) -> None:
        self.counts["launches"] += 1
        self._driver.launch(kernel, grid, values)

    def upload(self, pointer: int, host: Any) -> None:
        self.counts["up"] += host.nbytes
        self.counts["copies"] += 1
        self._driver.upload(pointer, host)

    def download(self, host: Any, pointer: int) -> None:
        self.counts["down"] += host.nbytes
        self.counts["copies"] += 1
        self._driver.download(host, pointer)

    def allocate(self, nbytes: int) -> Any:
        self.counts["allocations"] += 1
        return self._driver.allocate(nbytes)

    def synchronise(self) -> None:
        self.counts["waits"] += 1
        self._driver.synchronise()

    def end_capture(self) -> Graph:
        return CountedGraph(self._driver.end_capture(), self.counts)


@dataclass
class CountedGraph:
    """A graph whose launches are counted."""

    graph: Graph
    counts: Counter[str]

    def launch(self) -> None:
        """See `Graph`."""
        self.counts["graphs"] += 1
        self.graph.launch()


def main() -> None:
    """Print the counts of every frame."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, nargs="+", help="files, or folders of them")
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--schedule", default="fast")
    options = parser.parse_args()
    if Bundle.open(options.bundle).manifest.detector is None:
        print(f"{options.bundle} is no detector's, and F2PAD has no part in it.")
        return
    driver, backend = double() if options.double else gpu()
    counted = Counted(driver)
    settings: dict[str, Any] = {"refine": "f2pad", "schedule": options.schedule}
    kernels = CudaKernels(driver=counted)  # type: ignore[arg-type]
    device = Inspector.open(options.bundle, backend=backend, kernels=kernels, **settings)
    host = Inspector.open(options.bundle, backend="onnxruntime", threads=1, **settings)
    cv2.setNumThreads(1)
    for path in list_images(options.images)[: options.most]:
        frame = read_image(path)
        print(f"{path.name} {frame.shape}: {counts(device, counted, frame)}")
        print(f"    host {1e3 * apart(host, frame):.1f} ms")


def counts(device: Inspector, counted: Counted, frame: Any) -> str:
    """What the second inspection of a frame does."""
    device.search(frame)
    seen: Counter[str] = Counter()
    plain = FeaturePass.enqueue

    def enqueue(one: FeaturePass) -> None:
        seen["{0} of {2} x {3}".format(*one.images.shape)] += 1
        plain(one)

    FeaturePass.enqueue = enqueue  # type: ignore[method-assign]
    counted.counts.clear()
    found = device.search(frame)
    FeaturePass.enqueue = plain  # type: ignore[method-assign]
    parts = [f"{value} {name}" for name, value in sorted(counted.counts.items())]
    passes = [f"{value} x {name}" for name, value in seen.items()]
    return f"{found.steps} steps; passes {', '.join(passes)}; {', '.join(parts)}"


def apart(host: Inspector, frame: Any) -> float:
    """Seconds of an inspection on the CPU outside of the extractor and the distances."""
    host.search(frame)
    spent = 0.0
    inside = False

    def timed(plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal spent, inside
            if inside:
                return plain(*arguments, **named)
            inside, began = True, time.process_time()
            try:
                return plain(*arguments, **named)
            finally:
                inside = False
                spent += time.process_time() - began

        return run

    places = ((OrtProgram, "run"), (Padim, "scores_at"), (LowRankPadim, "scores_at"),
              (PatchCore, "scores"))  # fmt: skip
    plain = [getattr(place, name) for place, name in places]
    for (place, name), method in zip(places, plain, strict=True):
        setattr(place, name, timed(method))
    began = time.process_time()
    host.search(frame)
    total = time.process_time() - began
    for (place, name), method in zip(places, plain, strict=True):
        setattr(place, name, method)
    return total - spent


def gpu() -> tuple[Driver, Any]:
    """The first GPU, and ONNX Runtime on it."""
    from unblemish.kernels.cuda.pycuda_driver import PycudaDriver

    driver = PycudaDriver(0)
    return driver, open_backend("ort-cuda")


def double() -> tuple[Driver, Any]:
    """The doubles of the tests."""
    sys.path.insert(0, str(_TOOLS))
    from cuda_emulation import SOURCES, build
    from emulated_backend import EmulatedBackend
    from emulated_driver import EmulatedDriver

    folder = Path(tempfile.mkdtemp(prefix="unblemish-double-"))
    return EmulatedDriver([build(source, folder) for source in SOURCES]), EmulatedBackend()


if __name__ == "__main__":
    main()
