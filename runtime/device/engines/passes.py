"""What a search on the device sees of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from unblemish.kernels.device_array import DeviceArray


class StreamPass(Protocol):
    """One graph of an engine over buffers of fixed address, for one batch size.

    Who writes an input has it ordered on the stream before the pass; the outputs are written in
    place by every pass. Tensors kept for the way back are inputs of the backward pass that are
    outputs of the forward pass: the same memory.
    """

    inputs: Mapping[str, DeviceArray]
    outputs: Mapping[str, DeviceArray]
    capturable: bool  # whether `enqueue` may be recorded: no waiting, no allocating in it

    def enqueue(self, stream: int) -> None:
        """Put the pass on a stream; returns before it has run."""


@dataclass(frozen=True)
class PassPair:
    """A graph and its way back, for one batch size.

    Args:
        cotangents: output of `forward` -> where its cotangent is to be written.
        gradients: input of `forward` -> where `backward` writes the gradient.
    """

    forward: StreamPass
    backward: StreamPass
    cotangents: Mapping[str, DeviceArray]
    gradients: Mapping[str, DeviceArray]

    @property
    def capturable(self) -> bool:
        """Whether both passes may be recorded."""
        return self.forward.capturable and self.backward.capturable
