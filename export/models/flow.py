"""Conditional normalising flow over feature vectors: affine couplings that know the place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

POSITION = 128  # length of a place's encoding, half of it for the row
CLAMP = 1.9  # largest logarithm of a coupling's scale
_BASE = 10_000.0


def harmonics(count: int, length: int) -> NDArray[np.float32]:
    """Encode the numbers 0, 1, ..., count - 1 by sines and cosines.

    e[n, 2i] = sin(n w_i), e[n, 2i + 1] = cos(n w_i), w_i = 10000^(-2i / length).

    Args:
        length: even.
    Returns: (count, length) float32 in [-1, 1].
    Source: seed 003, section III-B2; Vaswani et al., 'Attention is all you need', 2017.
    """
    phase = np.arange(count)[:, None] * _BASE ** (-np.arange(0, length, 2) / length)
    return np.stack([np.sin(phase), np.cos(phase)], axis=2).reshape(count, length).astype("f4")


class Coupling(nn.Module):
    """Half of the vector scales and shifts the other half, once they are shuffled.

    With u, v the halves of the shuffled vector, e the encoding of the place and g the clamp:
    (r, t) = B relu(A u + C e + a) + b,   s = g tanh(r / g),   v' = v exp(s) + t.

    C e is the sum of a row's and a column's part, since e is one behind the other.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: NDArray[np.int64], hidden: int) -> None:
        super().__init__()
        channels = len(order)
        self.kept = channels // 2
        self.register_buffer("order", torch.from_numpy(order))
        self.register_buffer("back", torch.from_numpy(np.argsort(order)))
        self.inner = nn.Linear(self.kept, hidden)
        self.row = nn.Linear(POSITION // 2, hidden, bias=False)
        self.column = nn.Linear(POSITION // 2, hidden, bias=False)
        self.outer = nn.Linear(hidden, 2 * (channels - self.kept))
        # The flow begins as the identity: training starts at the Gaussian of all places.
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """x: (n, c), place: (n, hidden) C e. Returns x' (n, c) and log |det| (n,)."""
        u, v = x.index_select(1, self.order).tensor_split([self.kept], 1)
        scale, shift = self._affine(u, place)
        return torch.cat([u, v * scale.exp() + shift], 1), scale.sum(1)

    def inverse(self, x: Tensor, place: Tensor) -> Tensor:
        """The x that `forward` takes to this one."""
        u, v = x.tensor_split([self.kept], 1)
        scale, shift = self._affine(u, place)
        return torch.cat([u, (v - shift) * (-scale).exp()], 1).index_select(1, self.back)

    def _affine(self, u: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.outer(torch.relu(self.inner(u) + place)).chunk(2, 1)
        return CLAMP * torch.tanh(raw / CLAMP), shift


class ConditionalFlow(nn.Module):
    """Density of the feature vectors of one map, given their place.

    z = the couplings of W (f - m), with m and W (lower triangular) of the Gaussian that `whiten`
    sets;  log p(f) = log N(z; 0, I) + sum of all log |det|.

    Args:
        channels: of a vector, 2 or more.
        grid: (rows, columns) of the map.
        blocks: couplings. hidden: width of their networks.
        seed: fixes shuffles and first weights.
    Source: seed 003, section III-B2; Gudovskiy et al., CFLOW-AD, 2022; Dinh et al., Real NVP, 2017.
        The linear first layer is ours: training starts where a Gaussian ends.
    """

    mean: Tensor
    whitening: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self, channels: int, grid: tuple[int, int], *, blocks: int = 8, hidden: int = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.grid, self.hidden = channels, grid, hidden or channels + 256
        rng = np.random.default_rng([seed, channels])
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(channels))
        self.register_buffer("rows", torch.from_numpy(harmonics(grid[0], POSITION // 2)))
        self.register_buffer("columns", torch.from_numpy(harmonics(grid[1], POSITION // 2)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(
                Coupling(rng.permutation(channels), self.hidden) for _ in range(blocks)
            )

    def whiten(self, mean: NDArray[Any], whitening: NDArray[Any]) -> None:
        """Set the first layer: (c,) and lower triangular (c, c) with a positive diagonal."""
        self.mean.copy_(torch.from_numpy(np.asarray(mean)))
        self.whitening.copy_(torch.from_numpy(np.asarray(whitening)))

    def forward(self, features: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Log-density per channel of vectors (n, c) at places row (n,), column (n,) int64: (n,)."""
        z, log_det = self.encode(features, row, column)
        log_density = log_det - 0.5 * z.square().sum(1)
        return log_density / self.channels - 0.5 * math.log(2 * math.pi)

    def encode(self, features: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, c), standard normal where the vectors are normal, and log |det dz/df| (n,)."""
        z = (features - self.mean) @ self.whitening.T
        log_det = self.whitening.diagonal().log().sum().expand(len(z))
        for block in self.blocks:
            z, more = block(z, self._place(block, row, column))
            log_det = log_det + more
        return z, log_det

    def decode(self, z: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The vectors (n, c) that `encode` takes to z."""
        for block in reversed(self.blocks):
            z = block.inverse(z, self._place(block, row, column))  # type: ignore[operator]
        features: Tensor = torch.linalg.solve_triangular(self.whitening, z.T, upper=False).T
        return features + self.mean

    def _place(self, block: Any, row: Tensor, column: Tensor) -> Tensor:
        """C e, one product per row and per column of the map instead of one per vector."""
        place: Tensor = block.row(self.rows).index_select(0, row)
        more: Tensor = block.column(self.columns).index_select(0, column)
        return place + more
