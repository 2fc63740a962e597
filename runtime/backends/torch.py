"""The torch backend: plain ONNX graphs with autograd, for fine-tuning and where no engine runs.

Loading a program or pair imports torch and onnx; importing this module does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unblemish.errors import BackendError, MissingDependencyError, ShapeError
from unblemish.runtime.backends.protocol import Array, TensorSpec

if TYPE_CHECKING:
    import torch

    from unblemish.runtime.backends.torch_graph import TorchGraph


_NO_FORWARD = "backward was called before forward; run forward on the inputs first."


class TorchBackend:
    """Runs graphs of a bundle in torch on `device` ('cpu', 'cuda', ...)."""

    name = "torch"

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        self.threads = threads
        self.device = device

    def program(self, path: str, *, threads: int | None = None) -> TorchProgram:
        """Load one graph. `threads` sets torch's threads for the whole process, where given."""
        return TorchProgram(_graph(path, self.device, threads or self.threads).freeze())

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> TorchFilePair:
        """Load a forward/backward pair of files; both run as they are, without autograd."""
        return TorchFilePair(
            self.program(forward, threads=threads), self.program(backward, threads=threads)
        )

    def pair_from_graph(self, path: str, *, threads: int | None = None) -> TorchPair:
        """Make a pair of a plain graph: autograd gives the way back."""
        return TorchPair(_graph(path, self.device, threads or self.threads))


class TorchProgram:
    """One graph, run without autograd. Implements `Program`."""

    def __init__(self, graph: TorchGraph) -> None:
        self._graph = graph
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on `feeds`; see `Program.run`."""
        import torch

        with torch.no_grad():
            outputs = self._graph(**_tensors(feeds, self.inputs, self._graph))
        return {name: value.detach().cpu().numpy() for name, value in outputs.items()}


class TorchPair:
    """A plain graph whose way back is autograd. Implements `Pair`.

    `graph` is the module itself: its parameters may be trained between two calls.
    """

    def __init__(self, graph: TorchGraph) -> None:
        self.graph = graph
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self._leaves: dict[str, torch.Tensor] = {}
        self._values: dict[str, torch.Tensor] = {}

    def forward(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run and keep what the way back needs."""
        leaves = _tensors(feeds, self.inputs, self.graph)
        self._leaves = {
            n: t.detach().requires_grad_() for n, t in leaves.items() if t.is_floating_point()
        }
        self._values = self.graph(**{**leaves, **self._leaves})
        return {name: value.detach().cpu().numpy() for name, value in self._values.items()}

    def backward(self, cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Gradients of sum(cotangent * output) with respect to every floating input.

        May be called again with other cotangents for the same forward.
        Raises: BackendError before the first forward; ShapeError for an unknown output or a
        cotangent of another shape than its output.
        """
        import torch

        if not self._values:
            raise BackendError(_NO_FORWARD)
        outputs, weights = [], []
        for name, cotangent in cotangents.items():
            value = self._values.get(name)
            if value is None or tuple(value.shape) != np.shape(cotangent):
                found = None if value is None else tuple(value.shape)
                raise ShapeError(
                    f"cotangent of '{name}' has shape {np.shape(cotangent)}, the output {found}; "
                    f"the outputs are {sorted(self._values)}. Pass one array per output."
                )
            if value.requires_grad:
                outputs.append(value)
                weights.append(torch.as_tensor(np.asarray(cotangent)).to(value))
        names = list(self._leaves)
        leaves = [self._leaves[n] for n in names]
        found_gradients = (
            torch.autograd.grad(outputs, leaves, weights, retain_graph=True, allow_unused=True)
            if outputs
            else [None] * len(leaves)
        )
        return {
            name: (torch.zeros_like(leaf) if grad is None else grad).cpu().numpy()
            for name, leaf, grad in zip(names, leaves, found_gradients, strict=True)
        }


class TorchFilePair:
    """A forward and a backward graph, the kept tensors staying in torch. Implements `Pair`."""

    def __init__(self, forward: TorchProgram, backward: TorchProgram) -> None:
        self._forward, self._backward = forward._graph, backward._graph
        taken = {spec.name for spec in backward.inputs}
        self.inputs = forward.inputs
        self.outputs = tuple(
            spec for spec in forward.outputs if spec.name not in taken or f"ct_{spec.name}" in taken
        )
        self._feeds: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}

    def forward(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the forward graph, holding the kept tensors."""
        import torch

        self._feeds = _tensors(feeds, self.inputs, self._forward)
        with torch.no_grad():
            values: dict[str, torch.Tensor] = self._forward(**self._feeds)
        self._kept = {**self._feeds, **values}
        return {spec.name: values[spec.name].cpu().numpy() for spec in self.outputs}

    def backward(self, cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Run the backward graph on the kept tensors and cotangents."""
        import torch

        if not self._kept:
            raise BackendError(_NO_FORWARD)
        given = {f"ct_{name}": value for name, value in cotangents.items()}
        specs = tuple(s for s in self._backward.inputs if s.name.startswith("ct_"))
        tensors = _tensors(given, specs, self._backward)
        held = {s.name: self._kept[s.name] for s in self._backward.inputs if s.name in self._kept}
        with torch.no_grad():
            gradients = self._backward(**{**held, **tensors})
        return {n.removeprefix("grad_"): g.cpu().numpy() for n, g in gradients.items()}


def _graph(path: str, device: str, threads: int | None) -> TorchGraph:
    try:
        import torch

        from unblemish.runtime.backends.torch_graph import TorchGraph
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train", "The torch backend") from error
    if threads is not None:
        torch.set_num_threads(threads)
    graph = TorchGraph(path).eval()
    try:
        return graph.to(device)
    except RuntimeError as error:
        raise BackendError(
            f"torch cannot use the device '{device}': {error}. Use device='cpu'."
        ) from error


def _tensors(
    feeds: Mapping[str, Any], specs: tuple[TensorSpec, ...], graph: TorchGraph
) -> dict[str, torch.Tensor]:
    import torch

    expected = {spec.name: spec for spec in specs}
    if set(feeds) != set(expected):
        raise ShapeError(f"the graph takes {sorted(expected)}, found {sorted(feeds)}.")
    device = next((t.device for t in (*graph.parameters(), *graph.buffers())), torch.device("cpu"))
    tensors = {}
    for name, value in feeds.items():
        array = np.asarray(value)
        if array.dtype != expected[name].dtype:
            raise ShapeError(
                f"input '{name}' has dtype {array.dtype}, the graph states {expected[name].dtype}. "
                "Convert the array."
            )
        # A copy: torch must not see the caller change the array between forward and backward.
        tensors[name] = torch.tensor(array, device=device)
    return tensors
