"""CFLOW-AD on the device: the flow is a second pass over the features' memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from unblemish.errors import BackendError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.detectors.cflow import CellGroups, Cflow, FlowMap, group_cells
from unblemish.runtime.detectors.protocol import Cells
from unblemish.runtime.device.detectors.cell_scores import tiled
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.passes import PassPair, StreamPass
from unblemish.runtime.device.memory import Memory, placed

_PASSES = 16  # of different sizes at once

Counts = tuple[int, ...]


@dataclass(frozen=True)
class FlowPaths:
    """Files of the flow's graphs."""

    plain: str
    forward: str
    backward: str


class FlowModel:
    """See `DeviceModel`; its passes are shared by all scorers of one size, which take turns."""

    def __init__(self, engines: DeviceEngines, model: Cflow, paths: FlowPaths) -> None:
        self.kernels: CudaKernels = engines.kernels
        self.maps, self._rows = model.maps, model.rows
        self._engines, self._paths = engines, paths
        self._plain: dict[Counts, StreamPass] = {}
        self._pairs: dict[Counts, PassPair] = {}

    def shows(self, rows: int, columns: int, channels: int) -> bool:
        """See `DeviceModel`."""
        learned = self._rows, self.maps[0].columns, self.maps[-1].stop
        return (rows, columns, channels) == learned

    def plain(self, cells: Cells, batch: int, memory: Memory) -> FlowScorer:
        """See `DeviceModel`. Raises: BackendError where the engine was not made for so many."""
        maps = self._maps(cells, batch, memory)
        return FlowScorer(self.kernels, maps, self.forward(_counts(maps)), None)

    def scorer(self, cells: Cells, batch: int, memory: Memory) -> FlowScorer:
        """See `DeviceModel`. Raises: as `plain`."""
        maps = self._maps(cells, batch, memory)
        pair = self.pair(_counts(maps))
        return FlowScorer(self.kernels, maps, pair.forward, pair)

    def forward(self, counts: Counts) -> StreamPass:
        """The pass for so many vectors of every map."""
        if counts not in self._plain:
            _make_room(self._plain)
            with self._inputs(counts) as inputs:
                self._plain[counts] = self._engines.single(self._paths.plain, inputs)
        return self._plain[counts]

    def pair(self, counts: Counts) -> PassPair:
        """The same with its way back."""
        if counts not in self._pairs:
            _make_room(self._pairs)
            paths = self._paths
            with self._inputs(counts) as inputs:
                self._pairs[counts] = self._engines.pair(paths.forward, paths.backward, inputs)
        return self._pairs[counts]

    @contextmanager
    def _inputs(self, counts: Counts) -> Iterator[dict[str, DeviceArray]]:
        """Memory of a pass; what clears it has run before it goes, where there is none."""
        zeros, found = self.kernels.device.zeros, {}
        for k, (one, count) in enumerate(zip(self.maps, counts, strict=True)):
            found[f"features_{k}"] = zeros((count, one.width))
            found[f"position_row_{k}"] = zeros((count,), np.int64)
            found[f"position_column_{k}"] = zeros((count,), np.int64)
        try:
            yield found
        except BackendError:
            self.kernels.synchronise()
            raise

    def _maps(self, cells: Cells, batch: int, memory: Memory) -> list[_Map]:
        nowhere = np.zeros(len(cells), np.intp)
        return [
            _Map.on(self.kernels.device, k, one, group_cells(one, cells, nowhere), batch, memory)
            for k, one in enumerate(self.maps)
        ]


@dataclass(frozen=True)
class _Map:
    """The cells of a map that B images show, G each.

    Args:
        rows: (B G,) int32 of the features (B L, c). of: (B L,) int32, which of them a cell lies in.
        row, column: (B G,) int64 place. typical: (B G,).
    """

    name: str
    one: FlowMap
    rows: DeviceArray
    of: DeviceArray
    row: DeviceArray
    column: DeviceArray
    typical: DeviceArray

    @staticmethod
    def on(
        device: Device, k: int, one: FlowMap, found: CellGroups, batch: int, memory: Memory
    ) -> _Map:
        def put(name: str, host: Any, step: int = 0) -> DeviceArray:
            return placed(device, memory, f"flow {name} {k}", tiled(host, batch, step))

        return _Map(
            str(k),
            one,
            put("rows", found.one.astype(np.int32), len(found.of)),
            put("of", found.of.astype(np.int32), len(found.one)),
            put("row", found.row),
            put("column", found.column),
            put("typical", found.typical),
        )


class FlowScorer:
    """See `DeviceScorer`. pair: None where no slopes are wanted."""

    def __init__(
        self,
        kernels: CudaKernels,
        maps: Sequence[_Map],
        forward: StreamPass,
        pair: PassPair | None,
    ) -> None:
        self._device, self._stream = kernels.device, kernels.stream
        self._maps, self._forward, self._pair = tuple(maps), forward, pair
        self.capturable = forward.capturable and (pair is None or pair.capturable)

    def begin(self, features: DeviceArray) -> None:
        """See `DeviceScorer`; places do not depend on the features."""

    def enqueue(
        self, features: DeviceArray, *, scores: DeviceArray, cotangent: DeviceArray | None
    ) -> None:
        """See `DeviceScorer`."""
        for one in self._maps:
            self._feed(one, features)
        self._forward.enqueue(self._stream)
        for one in self._maps:
            self._add(one, scores)
        if self._pair is None or cotangent is None:
            return
        self._pair.backward.enqueue(self._stream)
        channels = cotangent.shape[2]
        for one in self._maps:
            self._device.launch(
                "spread_rows", self._device.rows(1, one.of.size * one.one.width, 1),
                rows=self._pair.gradients[f"features_{one.name}"], of=one.of, x=cotangent,
                count=one.of.size, channels=channels, width=one.one.width, **_from(one),
            )  # fmt: skip

    def _feed(self, one: _Map, features: DeviceArray) -> None:
        device, inputs = self._device, self._forward.inputs
        device.launch(
            "take_rows", device.rows(1, one.rows.size * one.one.width, 1), x=features,
            rows=one.rows, out=inputs[f"features_{one.name}"], count=one.rows.size,
            channels=features.shape[2], width=one.one.width, **_from(one),
        )  # fmt: skip
        device.copy(inputs[f"position_row_{one.name}"], one.row)
        device.copy(inputs[f"position_column_{one.name}"], one.column)

    def _add(self, one: _Map, scores: DeviceArray) -> None:
        device, name = self._device, f"likelihood_{one.name}"
        surprise = device.scratch("surprise", (one.rows.size,), np.float32)
        slope = None if self._pair is None else self._pair.cotangents[name]
        device.launch(
            "surprise", device.rows(1, one.rows.size, 1), likelihood=self._forward.outputs[name],
            typical=one.typical, surprise=surprise, slope=slope, count=one.rows.size,
        )  # fmt: skip
        device.launch(
            "add_taken", device.rows(1, one.of.size, 1), value=surprise, of=one.of, scores=scores,
            count=one.of.size, fresh=int(one is self._maps[0]),
        )  # fmt: skip


def _from(one: _Map) -> dict[str, int]:
    return {"from": one.one.first}


def _counts(maps: Sequence[_Map]) -> Counts:
    return tuple(one.rows.size for one in maps)


def _make_room(passes: dict[Counts, Any]) -> None:
    """Of too many sizes the one made first is forgotten."""
    while len(passes) >= _PASSES:
        passes.pop(next(iter(passes)))
