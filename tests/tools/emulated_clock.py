"""The time that work on the driver double takes: known amounts, so that what is timed is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class EmulatedClock:
    """Milliseconds of host and device, which run beside each other.

    The device begins a piece when the host has put it on the stream and the piece before is done.

    Args:
        put: host time for putting a piece, or a whole graph, on the stream.
        piece: device time of a piece; `costs` by name instead, `per_byte` more for every byte.
        node: device time more for every piece of a graph.
    """

    put: float = 0.0
    piece: float = 0.0
    node: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    per_byte: Mapping[str, float] = field(default_factory=dict)
    host: float = field(default=0.0, init=False)
    device: float = field(default=0.0, init=False)

    def __call__(self) -> float:
        """The host's clock in seconds."""
        return self.host / 1e3

    def cost(self, name: str, nbytes: int) -> float:
        """Device time of a piece."""
        return self.costs.get(name, self.piece) + nbytes * self.per_byte.get(name, 0.0)

    def putting(self) -> float:
        """Let the host put something on the stream; when it did."""
        self.host += self.put
        return self.host

    def spend(self, cost: float, since: float) -> None:
        """Let the device run something that is there since then."""
        self.device = max(self.device, since) + cost

    def waited(self, until: float) -> None:
        """Let the host wait for the device."""
        self.host = max(self.host, until)
