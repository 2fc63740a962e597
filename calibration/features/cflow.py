"""CFLOW-AD: one conditional normalising flow for every map of the features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.features.fitter import MEMORY, Advance, Fitted, Float, check_images
from unblemish.calibration.features.storage import Rows
from unblemish.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from unblemish.calibration.features.flow_training import Training
    from unblemish.export.models.flow import ConditionalFlow

FEW = 16  # images; with no more, the paper keeps the first two maps alone
FEW_MAPS = 2
BLOCKS = 8
_KEPT = 0.1  # of the images, kept apart to choose the weights
_LEAST_TO_KEEP = 8  # images; with fewer all are trained on


class CflowFitter:
    """Learn how likely the features of every map are at their place.

    Args:
        maps: (channels, stride) of the layers in a feature vector, the finest first.
        blocks: couplings of a flow.
        training: see `Training`; None for its defaults.
        minutes: training ends within them, shared among the maps by their arithmetic.
        seed: fixes the flows' first weights.
        memory: bytes to hold; more features lie in temporary files.
    Source: seed 003, section III-B2; Gudovskiy et al., CFLOW-AD, 2022.
    """

    def __init__(
        self,
        maps: Sequence[tuple[int, int]],
        *,
        blocks: int = BLOCKS,
        training: Training | None = None,
        minutes: float | None = None,
        seed: int = 0,
        memory: int = MEMORY,
    ) -> None:
        from unblemish.calibration.features.flow_training import Training as Defaults

        if not maps or any(channels < 2 for channels, _ in maps):
            raise ConfigError("CFLOW-AD needs maps of two channels or more.")
        if blocks < 1:
            raise ConfigError(f"a flow has 1 coupling or more; found {blocks}.")
        self.flows: tuple[ConditionalFlow, ...] = ()
        self._maps, self._blocks, self._seed = tuple(maps), blocks, seed
        self._training, self._minutes = training or Defaults(seed=seed), minutes
        sizes = [channels / stride**2 for channels, stride in maps]
        self._rows = [Rows(memory=int(memory // 2 * s / sum(sizes))) for s in sizes]
        self._grids: list[tuple[int, int]] = []
        self._images = 0

    def update(self, features: Float) -> None:
        """Take the features of some images, (batch, h, w, c) float32."""
        if not np.isfinite(features).all():
            raise CalibrationError(
                "the features of a normal image hold NaN or infinite values. The weights are "
                "damaged or belong to another network."
            )
        self._images += len(features)
        finest, first, grids = self._maps[0][1], 0, []
        for (channels, stride), rows in zip(self._maps, self._rows, strict=True):
            times = stride // finest  # coarser maps were repeated on the finest cells
            own = features[:, ::times, ::times, first : first + channels]
            rows.append(own.reshape(-1, channels))
            grids.append((own.shape[1], own.shape[2]))
            first += channels
        self._grids = grids

    def finish(self, advance: Advance | None = None) -> Fitted:
        """Train: `flows` of every map, and `typical` of the statistics.

        `typical` (cells of all maps,) float32: the log-density per channel that is usual at every
        place, map behind map, each row by row.

        Raises: CalibrationError where there were fewer than two images, or training failed.
        """
        from unblemish.calibration.features.flow_training import (
            train,
            typical,
            typical_places,
            whiten,
        )
        from unblemish.export.models.flow import ConditionalFlow

        check_images(self._images, "CFLOW-AD")
        apart = self._apart()
        until = None if self._minutes is None else time.monotonic() + 60 * self._minutes
        flows, usual, places, everything = [], [], [], np.arange(self._images)
        for number, (grid, held) in enumerate(zip(self._grids, self._rows, strict=True)):
            rows, (channels, _) = held.array(), self._maps[number]
            flow = ConditionalFlow(channels, grid, blocks=self._blocks, seed=self._seed + number)
            whiten(flow, rows)
            train(
                flow, rows, self._training, apart=apart, seconds=self._time(number, until),
                step=_teller(advance, number, len(self._maps)),
            )  # fmt: skip
            usual.append(typical(flow, rows, everything if apart is None else apart))
            # Images trained on look likelier than others; where they differ by place does not.
            own = typical_places(flow, rows, everything)
            places.append(own.ravel() + np.float32(usual[-1] - np.median(own)))
            flows.append(flow.requires_grad_(False))
        self.flows = tuple(flows)
        statistics = {"typical": np.concatenate(places)}
        return Fitted(statistics, self._facts(usual, 0 if apart is None else len(apart)))

    def close(self) -> None:
        """Let go of temporary files."""
        for rows in self._rows:
            rows.close()

    def _apart(self) -> NDArray[np.int64] | None:
        """Numbers of the images kept apart, drawn at random: neighbours in a folder are alike."""
        if self._images < _LEAST_TO_KEEP:
            return None
        order = np.random.default_rng(self._seed).permutation(self._images)
        return np.sort(order[: round(_KEPT * self._images)])

    def _time(self, number: int, until: float | None) -> float | None:
        """Seconds for a map: its share of those left, by the arithmetic of a step."""
        if until is None:
            return None
        costs = [channels * (channels + 256) for channels, _ in self._maps[number:]]
        return max(until - time.monotonic(), 0.0) * costs[0] / sum(costs)

    def _facts(self, usual: Sequence[float], kept: int) -> tuple[tuple[str, str], ...]:
        sizes = ", ".join(
            f"{rows}x{columns} of {channels} channels"
            for (rows, columns), (channels, _) in zip(self._grids, self._maps, strict=True)
        )
        where = f"on {kept} images kept apart" if kept else "on the images trained on"
        return (
            ("flows", f"{self._blocks} couplings each, for maps {sizes}"),
            ("log-likelihood per channel",
             f"{', '.join(f'{value:.2f}' for value in usual)} (median {where})"),
        )  # fmt: skip


_TICKS = 100


def _teller(advance: Advance | None, number: int, maps: int):  # type: ignore[no-untyped-def]
    """Progress of one map as part of all."""

    def tell(share: float) -> None:
        if advance is not None:
            advance("training", round(_TICKS * (number + share)), _TICKS * maps)

    return tell
