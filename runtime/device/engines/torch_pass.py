"""A generator in torch over device arrays: autograd on the kernels' stream, in their memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.utils.dlpack import from_dlpack

from unblemish.errors import BackendError
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.kernels.dlpack import GPU_KINDS
from unblemish.runtime.backends.pairing import first_line
from unblemish.runtime.backends.torch_graph import TorchGraph
from unblemish.runtime.device.engines.passes import PassPair


class TorchForward:
    """The graph, its weights read where they lie. Implements `StreamPass`.

    torch allocates while it runs, from memory that it does not know to be part of a graph of ours.
    """

    capturable = False

    def __init__(
        self, device: Device, graph: TorchGraph, inputs: Mapping[str, DeviceArray], image: str
    ) -> None:
        self.place = torch_device(device)
        self._device, self._graph, self._image = device, graph, image
        self.inputs: Mapping[str, DeviceArray] = dict(inputs)
        seen = {name: from_dlpack(array) for name, array in inputs.items()}
        graph.bind({name: seen[name] for name in graph.weights})
        graph.place(self.place)
        self._latents = {spec.name: seen[spec.name] for spec in graph.inputs}
        self.leaves: dict[str, torch.Tensor] = {}
        self.made: torch.Tensor | None = None
        with on_stream(device, self.place):
            shape = tuple(self._run().shape)
        self.outputs: Mapping[str, DeviceArray] = {image: device.empty(shape)}
        self._out = from_dlpack(self.outputs[image])

    def enqueue(self, stream: int) -> None:
        """See `StreamPass`. Raises: BackendError where torch fails."""
        with on_stream(self._device, self.place):
            self._out.copy_(self._run().detach())

    def _run(self) -> torch.Tensor:
        self.leaves = {name: z.detach().requires_grad_() for name, z in self._latents.items()}
        self.made = self._graph(**self.leaves)[self._image]
        return self.made


class TorchBackward:
    """The way back of the last forward pass. Implements `StreamPass`."""

    capturable = False

    def __init__(
        self, device: Device, graph: TorchGraph, forward: TorchForward, image: str
    ) -> None:
        self._device, self._graph, self._forward = device, graph, forward
        cotangent = device.zeros(forward.outputs[image].shape)
        self.inputs: Mapping[str, DeviceArray] = {f"ct_{image}": cotangent}
        self.outputs: Mapping[str, DeviceArray] = {
            f"grad_{name}": device.empty(array.shape) for name, array in forward.inputs.items()
        }
        self._cotangent = from_dlpack(cotangent)
        self._out = {name: from_dlpack(array) for name, array in self.outputs.items()}

    def enqueue(self, stream: int) -> None:
        """See `StreamPass`. Raises: BackendError before a forward pass, or where torch fails."""
        made = self._forward.made
        if made is None:
            raise BackendError("backward was called before forward. Call forward first.")
        known = {**self._forward.leaves, **self._graph.weights}
        names = list(self._forward.inputs)
        with on_stream(self._device, self._forward.place):
            found = torch.autograd.grad(
                made, [known[name] for name in names], self._cotangent, allow_unused=True
            )
            for name, gradient in zip(names, found, strict=True):
                out = self._out[f"grad_{name}"]
                out.zero_() if gradient is None else out.copy_(gradient)
        self._forward.made = None


def torch_pair(
    device: Device, graph: TorchGraph, inputs: Mapping[str, DeviceArray], image: str
) -> PassPair:
    """A pair of a plain graph; it takes the graph over.

    Args:
        inputs: arrays of all inputs and of all weights, by name; each is differentiated by.
        image: the output.
    Raises: BackendError where torch cannot use the device; ModelError where the graph fails there.
    """
    forward = TorchForward(device, graph, inputs, image)
    backward = TorchBackward(device, graph, forward, image)
    gradients = {name: backward.outputs[f"grad_{name}"] for name in inputs}
    return PassPair(forward, backward, {image: backward.inputs[f"ct_{image}"]}, gradients)


def torch_device(device: Device) -> torch.device:
    """What torch calls this device. Raises: BackendError where it cannot use it."""
    kind, number = device.driver.device
    if kind not in GPU_KINDS:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendError(
            f"torch {torch.__version__} cannot use the GPU. Install a build with CUDA, or export "
            "the bundle with --finetune, which needs no torch."
        )
    return torch.device("cuda", number)


@contextlib.contextmanager
def on_stream(device: Device, place: torch.device) -> Iterator[None]:
    """Have torch work on the kernels' stream, in float32 and the same way each time.

    On a CPU torch computes at once: what is on the stream must have run.
    """
    try:
        with contextlib.ExitStack() as stack:
            if place.type == "cuda":
                stream = torch.cuda.ExternalStream(device.driver.stream, place)  # type: ignore[no-untyped-call]
                stack.enter_context(torch.cuda.stream(stream))
            else:
                device.driver.synchronise()
            float32 = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
            stack.enter_context(float32)
            yield
    except RuntimeError as error:
        raise BackendError(f"torch failed on the device: {first_line(error)}.") from error
