"""`FeatureTerms` by the CUDA kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from unblemish.errors import ConfigError
from unblemish.kernels import feature_checks as checks
from unblemish.kernels.cuda.call import Call
from unblemish.kernels.cuda.device import Grid
from unblemish.kernels.cuda.part import Part

# What fits into shared memory: see teams.cuh, mahalanobis_low_rank.cu and top_candidates.cu.
MOST_CHANNELS = 2048
MOST_DIRECTIONS = 1024
_TILE = 64


class CudaFeatureTerms(Part):
    """See `FeatureTerms`. Part of `CudaKernels`, which makes the device.

    Raises: ConfigError also where a cell has more channels or directions than fit on the chip.
    """

    def mahalanobis(
        self, f: Any, mean: Any, whitening: Any, cells: Any, *, scores: Any, cotangent: Any
    ) -> None:
        """See `FeatureTerms`."""
        arrays = self._arrays(
            f=f, mean=mean, whitening=whitening, cells=cells, scores=scores, cotangent=cotangent
        )
        checks.mahalanobis(**arrays)
        self._cells("mahalanobis", arrays)

    def mahalanobis_low_rank(
        self,
        f: Any,
        mean: Any,
        basis: Any,
        inverse_variance: Any,
        cells: Any,
        *,
        scores: Any,
        cotangent: Any,
    ) -> None:
        """See `FeatureTerms`."""
        arrays = self._arrays(
            f=f, mean=mean, basis=basis, inverse_variance=inverse_variance, cells=cells,
            scores=scores, cotangent=cotangent,
        )  # fmt: skip
        checks.mahalanobis_low_rank(**arrays)
        rank = arrays["basis"].shape[2]
        _at_most("mahalanobis_low_rank", "directions", rank, MOST_DIRECTIONS)
        self._cells("mahalanobis_low_rank", arrays, rank=rank)

    def _cells(self, kernel: str, arrays: dict[str, Any], **more: int) -> None:
        """A block for every cell."""
        items, length, channels = arrays["f"].shape
        _at_most(kernel, "channels", channels, MOST_CHANNELS)
        with Call(self.device, arrays, written=("scores", "cotangent")) as call:
            sizes = {"items": items, "length": length, "channels": channels, **more}
            call.launch(kernel, self._blocks(items, length), **sizes)

    def _blocks(self, items: int, length: int) -> Grid:
        """Items side by side only where cells are too few: what a place has is then read again."""
        across = min(length, self.device.most_blocks)
        return across, min(items, max(self.device.most_blocks // across, 1))

    def top_candidates(
        self, queries: Any, bank: Any, *, index: Any, distances: Any, norms: Any = None
    ) -> None:
        """See `FeatureTerms`."""
        arrays = self._arrays(
            queries=queries, bank=bank, index=index, distances=distances, norms=norms
        )
        checks.top_candidates(**arrays)
        count, k = arrays["index"].shape
        rows, channels = arrays["bank"].shape
        most = self.device.most_blocks
        groups = min(-(-count // _TILE), most)
        slices = min(-(-rows // _TILE), max(most // groups, 1))
        scratch = self.device.scratch
        with Call(self.device, arrays, written=("index", "distances")) as call:
            if arrays["norms"] is None:
                call.arrays["norms"] = scratch("norms of the bank", (rows,), np.float32)
                call.launch(
                    "bank_norms", (min(-(-rows // 16), most), 1), rows=rows, channels=channels
                )
            value = scratch("ranked values", (slices, count, k), np.float32)
            ranked = scratch("ranked rows", (slices, count, k), np.int32)
            sizes = {"count": count, "channels": channels, "k": k}
            call.launch(
                "rank_candidates", (groups, slices), value=value, index=ranked, rows=rows, **sizes
            )
            call.launch(
                "settle_candidates", (min(count, most), 1), value=value, ranked=ranked,
                slices=slices, **sizes,
            )  # fmt: skip

    def nearest_candidate(
        self, f: Any, bank: Any, candidates: Any, *, scores: Any, cotangent: Any, chosen: Any
    ) -> None:
        """See `FeatureTerms`."""
        arrays = self._arrays(
            f=f, bank=bank, candidates=candidates, scores=scores, cotangent=cotangent, chosen=chosen
        )
        checks.nearest_candidate(**arrays)
        items, length, channels = arrays["f"].shape
        cells, count = items * length, arrays["candidates"].shape[2]
        with Call(self.device, arrays, written=("scores", "cotangent", "chosen")) as call:
            sizes = {"cells": cells, "channels": channels, "count": count}
            call.launch("nearest_candidate", self._blocks(1, cells), **sizes)


def _at_most(where: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise ConfigError(
            f"{where}: the CUDA kernel takes at most {most} {what}, found {found}. Use fewer, or "
            "the CPU kernels."
        )
