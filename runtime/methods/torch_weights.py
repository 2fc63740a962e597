"""Fine-tuning by torch: any exported generator, its weights given with every call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from unblemish.bundle import Bundle
from unblemish.errors import BackendError, MissingDependencyError
from unblemish.runtime.backends.protocol import Array
from unblemish.runtime.engines import tensor_of_role
from unblemish.runtime.methods.engine import Stopwatch
from unblemish.runtime.solvers.protocol import Float

if TYPE_CHECKING:
    import torch

    from unblemish.runtime.backends.torch_graph import TorchGraph


class TorchWeightEngine:
    """The plain generator graph in torch; autograd gives the gradients. See `WeightEngine`."""

    def __init__(self, graph: TorchGraph, latent: str, image: str) -> None:
        self._graph = graph
        self._latent, self._image = latent, image
        self._shape = next(spec.shape for spec in graph.inputs if spec.name == latent)
        self._z: torch.Tensor | None = None
        self._out: torch.Tensor | None = None
        self.watch = Stopwatch()

    def forward(self, z: Float, weights: Mapping[str, Array] | None = None) -> Float:
        """See `WeightEngine.forward`."""
        import torch

        began = time.perf_counter()
        with torch.no_grad():
            for name, array in (weights or {}).items():
                self._graph.weights[name].copy_(torch.from_numpy(array))
        shaped = z.reshape(len(z), *(int(d) for d in self._shape[1:]))
        self._z = torch.tensor(shaped, requires_grad=True)
        self._out = self._graph(**{self._latent: self._z})[self._image]
        self.watch.add("forward", began)
        images: Float = self._out.detach().numpy()
        return images

    def backward(self, cotangent: Float) -> tuple[Float, Mapping[str, Array]]:
        """See `WeightEngine.backward`. Raises: BackendError before the first forward."""
        import torch

        if self._out is None or self._z is None:
            raise BackendError("backward was called before forward. Call forward first.")
        began = time.perf_counter()
        named = self._graph.weights
        gradients = torch.autograd.grad(
            self._out,
            [self._z, *named.values()],
            torch.from_numpy(cotangent),
            allow_unused=True,
        )
        grad, *others = (None if g is None else g.numpy() for g in gradients)
        if grad is None:
            raise BackendError("the generator's image does not depend on its latent.")
        filled = {
            name: np.zeros(tuple(p.shape), np.float32) if g is None else g
            for (name, p), g in zip(named.items(), others, strict=True)
        }
        self._out = None
        self.watch.add("backward", began)
        return grad.reshape(len(grad), -1), filled


def torch_weight_engine(
    bundle: Bundle, threads: int | None = None
) -> tuple[TorchWeightEngine, dict[str, Array]]:
    """Engine and read-only weights of the bundle's plain generator graph. Raises: as below."""
    graph = load_torch_graph(bundle, threads)
    latent = tensor_of_role(bundle.manifest, "generator", "latent", output=False).name
    image = tensor_of_role(bundle.manifest, "generator", "image", output=True).name
    return TorchWeightEngine(graph, latent, image), weights_of(graph)


def load_torch_graph(bundle: Bundle, threads: int | None = None) -> TorchGraph:
    """The bundle's plain generator graph in float32.

    Raises: MissingDependencyError where torch or onnx is missing; BundleError where the bundle has
    no 'generator' graph.
    """
    path = bundle.graph("generator")
    try:
        from unblemish.runtime.backends.torch_graph import TorchGraph
    except MissingDependencyError as error:
        raise MissingDependencyError(
            error.package, error.extra, "R-RGI on a bundle without weight-gradient graphs"
        ) from error
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    # Bundles may store weights in float16; their updates are far smaller than its steps.
    return TorchGraph(str(path), dtype=torch.float32).eval()


def weights_of(graph: TorchGraph) -> dict[str, Array]:
    """Copies of the weights of a graph, by name; read-only."""
    weights = {}
    for name, parameter in graph.weights.items():
        copy = parameter.detach().numpy().copy()
        copy.flags.writeable = False
        weights[name] = copy
    return weights
