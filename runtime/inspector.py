"""The front door: open a bundle once, inspect frame after frame."""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.errors import ConfigError
from unblemish.kernels import Kernels
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.decision import (
    decide,
    refine_warning,
    require_calibration,
    size_warning,
)
from unblemish.runtime.energy_search import EnergySearch
from unblemish.runtime.feature_search import FeatureSearch, Survey
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Inspection
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search
from unblemish.runtime.solvers.loop import Clock
from unblemish.runtime.solvers.protocol import Float
from unblemish.runtime.weighting import load_weight

AnySearch = Search | FeatureSearch | EnergySearch
_MAKERS: dict[str, type[AnySearch]] = {"rgi": Search, "energy": EnergySearch}  # else a detector


class Inspector:
    """Inspect frames against a bundle.

    Safe to share between threads: calls take turns, each using all the engine's threads. For
    parallel inspection open several, with fewer `threads` each.

    >>> with Inspector.open("part.bundle") as inspector:      # doctest: +SKIP
    ...     inspection = inspector.inspect(frame)
    """

    def __init__(
        self,
        search: AnySearch,
        *,
        deadline_ms: float | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.bundle = search.bundle
        self._weight = load_weight(search.bundle)
        self._search: AnySearch | None = search
        self._deadline_ms = deadline_ms
        self._clock = clock
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self.refine, self.schedule = search.refine, search.options.schedule

    @staticmethod
    def open(
        bundle: Bundle | str | os.PathLike[str],
        *,
        backend: str | Backend = "auto",
        threads: int | None = None,
        refine: str | None = None,
        schedule: str = "fast",
        max_steps: int | None = None,
        deadline_ms: float | None = None,
        white: float | None = None,
        kernels: Kernels | None = None,
        clock: Clock = time.perf_counter,
    ) -> Inspector:
        """Open a bundle (its hashes are verified) and load its engines.

        Args:
            bundle: a folder, or a bundle already opened.
            deadline_ms: for every frame, unless `inspect` says otherwise.
            kernels: instead of the fastest ones installed.
            The others: see `SearchOptions`.
        Raises: BundleError, BackendError or ConfigError, each saying what to do.
        """
        options = SearchOptions(backend, threads, refine, schedule, max_steps, white)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        maker = _MAKERS.get(opened.manifest.method, FeatureSearch)
        search = maker(opened, options, kernels=kernels, clock=clock)
        return Inspector(search, deadline_ms=deadline_ms, clock=clock)

    def inspect(
        self,
        frame: Any,
        *,
        deadline_ms: float | None = None,
        previous: Inspection | Found | Float | None = None,
    ) -> Inspection:
        """Inspect one frame: uint8, uint16 or float, grey or colour, any size.

        Args:
            frame: (H, W) or (H, W, C), RGB where coloured; see `to_unit`.
            deadline_ms: time for the whole inspection, from when it is this call's turn; what is
                found by then is returned.
            previous: inspection of the frame before, as a start for this one.
        Raises: SourceError where the frame is not usable; ConfigError where the bundle is not
            calibrated. How the search went is the `status` of the result, never an exception.
        """
        require_calibration(self.bundle.manifest.calibration)
        limit = self._deadline_ms if deadline_ms is None else deadline_ms
        with self._lock:
            found = self._open()(frame, deadline_ms=limit, previous=previous)
            return self._decide(found)

    def inspect_many(
        self, frames: Iterable[Any], *, deadline_ms: float | None = None
    ) -> Iterator[Inspection]:
        """Inspect frames in their order, several at once where that is faster.

        Args:
            deadline_ms: per frame.
        Yields: one inspection per frame; the `timings` are those of the frames searched with it.
        Raises: as `inspect`, at the frame that is not usable
            (the frames batched with it are then lost: use `inspect` where that matters).
        """
        require_calibration(self.bundle.manifest.calibration)
        limit = self._deadline_ms if deadline_ms is None else deadline_ms
        source = iter(frames)
        while chunk := list(itertools.islice(source, self._open().frames_at_once)):
            with self._lock:
                total = None if limit is None else limit * len(chunk)
                found = self._open().many(chunk, deadline_ms=total)
                results = [self._decide(one) for one in found]
            yield from results

    def search(
        self,
        frame: Any,
        *,
        lam: float | None = None,
        deadline_ms: float | None = None,
        previous: Inspection | Found | Float | None = None,
    ) -> Found:
        """Search without deciding: works on a bundle that is not calibrated. See `Search`.

        Args:
            lam: instead of the bundle's lambda.
        """
        with self._lock:
            return self._open()(frame, lam=lam, deadline_ms=deadline_ms, previous=previous)

    def detect(self, frame: Any) -> Found:
        """The map of a detector, whatever the refinement.

        Raises: ConfigError for a generator's bundle, which has none.
        """
        with self._lock:
            return self._detecting().detect(frame)

    def inpaint(
        self, frame: Any, mask: NDArray[Any], *, deadline_ms: float | None = None
    ) -> NDArray[Any]:
        """Replace the pixels of a known mask by what a normal part would show there.

        Works on a bundle that is not calibrated. Where the mask is not known, `search` finds it:
        its result is `restored`.

        Args:
            frame: as for `inspect`. mask: (H, W), bool, or numbers of which all but 0 count.
            deadline_ms: time for everything; the best so far is returned.
        Returns: as the frame, which stays bit by bit outside of the mask.
        Raises: SourceError where the frame is not usable; ShapeError where the mask does not fit;
        ConfigError for a detector's bundle without an inpainter.
        """
        limit = self._deadline_ms if deadline_ms is None else deadline_ms
        with self._lock:
            return self._open().inpaint(frame, mask, deadline_ms=limit)

    def survey(self, frame: Any) -> Survey:
        """How far a normal frame reaches, for calibration.

        Raises: ConfigError for a generator's bundle, which has no detector.
        """
        with self._lock:
            return self._detecting().survey(frame)

    def adopt(self, bundle: Bundle) -> None:
        """Go on with other settings of the same files.

        Raises: ConfigError for a generator's bundle, whose engines hang on its settings.
        """
        with self._lock:
            search = self._open()
            if not isinstance(search, EnergySearch):
                search = self._detecting()
            search.adopt(bundle)
            self.bundle = bundle

    def close(self) -> None:
        """Free the engines; further calls raise ConfigError. May be called twice."""
        with self._lock:
            self._search = None

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> AnySearch:
        if self._search is None:
            raise ConfigError("the inspector is closed. Open it again with Inspector.open.")
        return self._search

    def _detecting(self) -> FeatureSearch:
        search = self._open()
        if not isinstance(search, FeatureSearch):
            raise ConfigError(
                "this bundle has no detector, and its engines hang on its settings; use "
                "`search`, or open the bundle again."
            )
        return search

    def _decide(self, found: Found) -> Inspection:
        began = self._clock()
        manifest = self.bundle.manifest
        self._warn(found.score.shape)
        inspection = decide(
            found,
            manifest.calibration,
            millimetres_per_pixel=manifest.millimetres_per_pixel,
            weight=self._weight,
        )
        seconds = self._clock() - began
        self._open().reserve(found.score.size, seconds)
        inspection.timings["decide"] = 1000 * seconds
        inspection.timings["total"] += 1000 * seconds
        return inspection

    def _warn(self, shape: tuple[int, ...]) -> None:
        """Each kind once per inspector: a line of warnings per frame would help nobody."""
        calibration = require_calibration(self.bundle.manifest.calibration)
        texts = {
            "refine": refine_warning(self.refine, calibration),
            "size": size_warning(shape, calibration),
        }
        for kind, text in texts.items():
            if text is not None and kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(text, RuntimeWarning, stacklevel=4)
