"""Torch modules as `StreamPass`es on a GPU: CUDA graphs of torch's own, on the kernels' stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.steps.inversion import GeneratorPasses

Network = Callable[[torch.Tensor], torch.Tensor]


class TorchPass:
    """A captured function; torch's graph is replayed, not captured again into ours."""

    capturable = False

    def __init__(
        self,
        kernels: CudaKernels,
        function: Callable[[], None],
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._stream = torch.cuda.ExternalStream(kernels.stream)
        kernels.synchronise()
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # libraries choose their algorithms
                function()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            function()
        torch.cuda.synchronize()

    def enqueue(self, stream: int) -> None:
        """See `StreamPass`."""
        with torch.cuda.stream(self._stream):
            self._graph.replay()


def generator_passes(
    kernels: CudaKernels, network: Network, batch: int, latent: int, image: tuple[int, int, int]
) -> GeneratorPasses:
    """A generator's way there and back over arrays of ours; the way back runs forward once more."""
    device = kernels.device
    z, gradient = device.zeros((batch, latent)), device.zeros((batch, latent))
    made, cotangent = device.zeros((batch, *image)), device.zeros((batch, *image))
    ours = {"z": z, "gradient": gradient, "made": made, "cotangent": cotangent}
    there = {name: torch.as_tensor(array, device="cuda") for name, array in ours.items()}

    def forward() -> None:
        with torch.no_grad():
            there["made"].copy_(network(there["z"]))

    def backward() -> None:
        leaf = there["z"].detach().requires_grad_()
        (found,) = torch.autograd.grad(network(leaf), leaf, there["cotangent"])
        there["gradient"].copy_(found)

    return GeneratorPasses(
        TorchPass(kernels, forward, {"z": z}, {"image": made}),
        TorchPass(kernels, backward, {"cotangent": cotangent}, {"gradient": gradient}),
        z, made, cotangent, gradient,
    )  # fmt: skip
