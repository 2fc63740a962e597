"""CFLOW-AD: how unlikely are the features of every map at their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.runtime.backends.protocol import Array, Pair, Program
from unblemish.runtime.detectors.protocol import Cells, CellScorer
from unblemish.runtime.solvers.protocol import Float

_CELLS = 4096  # finest cells in one run of the flow: what lies between its nodes fits the caches

Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class FlowMap:
    """One map of the features.

    Args:
        first, stop: its channels in a feature vector.
        times: finest cells per cell of the map, along a side.
        columns: of the finest cells of a model image.
        typical: (cells of the map,) log-likelihood per channel that is usual at every place.
    """

    first: int
    stop: int
    times: int
    columns: int
    typical: Float

    @property
    def width(self) -> int:
        """Channels."""
        return self.stop - self.first

    def places(self, cells: NDArray[np.int32]) -> tuple[Numbers, Numbers]:
        """Row and column in the map of finest cells by number."""
        row, column = np.divmod(cells.astype(np.intp), self.columns)
        return row // self.times, column // self.times


@dataclass(frozen=True)
class CellGroups:
    """The cells of a map that some finest cells lie in.

    Args:
        one: (G,) index of one finest cell of each. of: (n,) which one every finest cell lies in.
        row, column: (G,) int64 place in the map. typical: (G,) of these places.
    """

    one: Numbers
    of: Numbers
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    typical: Float


@dataclass(frozen=True)
class Cflow:
    """s = sum over maps k of log(1 + exp(t_k(place) - l_k)), l_k = log p_k(f_k | place) / c_k.

    This is eq. (6) with its sign turned: log(p / (1 + p)) grows with p, and what F2PAD minimises
    must fall with it. Taken per channel, as the method is trained, and with p in units of what is
    usual for normal cells at the place, t_k = `typical`: the unit of a density is that of the
    features, so that a map of small features would else be all likely and say nothing; and cells
    at the border, which see the network's padding, would be the least likely of every image. s is
    0.69 per map where a cell is as likely as usual, and grows as t_k - l_k where it is not.

    Maps coarser than the finest are repeated on its cells, in the features and in the score.

    Args:
        plain, pair: the flow: 'features_k', 'position_row_k', 'position_column_k' ->
            'likelihood_k'; and with its gradient.
        maps: finest first. rows: of the finest cells of a model image.
    Source: seed 003, eq. (6); Gudovskiy et al., CFLOW-AD, 2022.
    """

    plain: Program
    pair: Pair
    maps: tuple[FlowMap, ...]
    rows: int

    def scores(self, features: Float) -> Float:
        """See `CellModel`."""
        batch, height, width, channels = features.shape
        columns, wanted = self.maps[0].columns, self.maps[-1].stop
        if (height, width, channels) != (self.rows, columns, wanted):
            raise ShapeError(
                f"CFLOW-AD learned {self.rows} x {columns} cells of {wanted} channels; the image "
                f"gives {height} x {width} of {channels}. Fit the bundle again."
            )
        cells = np.arange(height * width, dtype=np.int32)
        flat = features.reshape(batch, -1, channels)
        return self.scores_at(flat, cells).reshape(batch, height, width)

    def scores_at(self, features: Float, cells: Cells) -> Float:
        """See `CellModel`; features of finest cells within one cell of a map are equal there."""
        out = np.empty(features.shape[:2], np.float32)
        groups = [group_cells(m, cells, np.zeros(len(cells), np.intp)) for m in self.maps]
        for part in _parts(*features.shape[:2]):
            block = features[part]
            feeds: dict[str, Array] = {}
            for k, (m, g) in enumerate(zip(self.maps, groups, strict=True)):
                own = block[:, g.one, m.first : m.stop].reshape(-1, m.width)
                feeds |= _feeds(k, own, np.tile(g.row, len(block)), np.tile(g.column, len(block)))
            found = self.plain.run(feeds)
            out[part] = 0
            for k, g in enumerate(groups):
                below = g.typical - found[f"likelihood_{k}"].reshape(len(block), -1)
                out[part] += np.logaddexp(np.float32(0), below)[:, g.of]
        return out

    def scorer(self, features: Float, cells: Cells) -> CellScorer:
        """See `CellModel`. The places do not depend on the features."""
        counted = np.flatnonzero(cells >= 0)
        item, number = counted // cells.shape[1], cells.reshape(-1)[counted]
        groups = [group_cells(m, number, item) for m in self.maps]
        return CflowScorer(self.pair, self.maps, tuple(groups), counted)


@dataclass(frozen=True)
class CflowScorer:
    """Scores of fixed places; see `CellScorer`. counted: of the (B * L) cells, flat."""

    pair: Pair
    maps: tuple[FlowMap, ...]
    groups: tuple[CellGroups, ...]
    counted: Numbers

    def __call__(self, features: Float, *, cotangent: Float) -> Float:
        """s, and d s / d f = -sum over maps of sigmoid(t - l) d l / d f."""
        scores = np.zeros(features.shape[:2], np.float32)
        cotangent[...] = 0
        if not len(self.counted):
            return scores
        flat = features.reshape(-1, features.shape[2])
        feeds: dict[str, Array] = {}
        for k, (m, g) in enumerate(zip(self.maps, self.groups, strict=True)):
            own = flat[self.counted[g.one], m.first : m.stop]
            feeds |= _feeds(k, own, g.row, g.column)
        found = self.pair.forward(feeds)
        total, slopes = np.zeros(len(self.counted), np.float32), {}
        for k, g in enumerate(self.groups):
            below = g.typical - found[f"likelihood_{k}"]
            total += np.logaddexp(np.float32(0), below)[g.of]
            slopes[f"likelihood_{k}"] = -_sigmoid(below)
        gradients = self.pair.backward(slopes)
        for k, (m, g) in enumerate(zip(self.maps, self.groups, strict=True)):
            item, cell = np.divmod(self.counted, features.shape[1])
            cotangent[item, cell, m.first : m.stop] = gradients[f"features_{k}"][g.of]
        scores.reshape(-1)[self.counted] = total
        return scores


def group_cells(one: FlowMap, cells: Cells, item: Numbers) -> CellGroups:
    """Which finest cells, numbered within the model image of their item, share a cell of a map."""
    row, column = one.places(cells)
    width = one.columns // one.times
    # Rows are counted on, item by item, so that the cells of two items never meet.
    key = (item * (row.max(initial=0) + 1) + row) * width + column
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    own_row, own_column = row[first].astype(np.int64), column[first].astype(np.int64)
    usual = one.typical[own_row * width + own_column]
    return CellGroups(first, of.reshape(-1), own_row, own_column, usual)


def _parts(items: int, cells: int) -> Iterator[slice]:
    step = max(_CELLS // max(cells, 1), 1)
    return (slice(i, i + step) for i in range(0, items, step))


def _feeds(k: int, own: Float, row: Array, column: Array) -> Mapping[str, Array]:
    return {
        f"features_{k}": np.ascontiguousarray(own),
        f"position_row_{k}": row,
        f"position_column_{k}": column,
    }


def _sigmoid(x: Float) -> Float:
    return np.exp(-np.logaddexp(np.float32(0), -x))


def flow_maps(
    shapes: Sequence[tuple[int, int]], stride: int, rows: int, columns: int, typical: Float
) -> tuple[FlowMap, ...]:
    """The maps of feature vectors whose layers follow each other.

    Args:
        shapes: (channels, stride) of every layer. stride, rows, columns: of the finest cells.
        typical: (cells of all maps,), map behind map.
    Raises: ShapeError where `typical` is not as long.
    """
    maps, first, begin = [], 0, 0
    for channels, own in shapes:
        times = own // stride
        end = begin + (rows // times) * (columns // times)
        maps.append(FlowMap(first, first + channels, times, columns, typical[begin:end]))
        first, begin = first + channels, end
    if typical.shape != (begin,):
        raise ShapeError(f"the maps have {begin} places; 'typical' has shape {typical.shape}.")
    return tuple(maps)
