"""What exported graphs are compared with: the given file, and torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from unblemish.export.parity.engine import Array, Engine
from unblemish.export.source import IMAGE, LATENT, Original, Source

Gradients = dict[str, Array]
Vjp = Callable[[Array, Array], Gradients]


def has_torch() -> bool:
    """Whether torch can be imported."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def oracle(source: Source) -> tuple[Callable[[Array], Array], Vjp | None]:
    """The generator's images, and its vector-Jacobian product where torch is there."""
    network = source.oracles.get("generator")
    if network is not None:
        return lambda z: torch_image(network, z), lambda z, c: torch_vjp(network, LATENT, z, c)
    assert source.original is not None
    original = source.original
    if not has_torch():
        return lambda z: original_image(original, z), None
    return lambda z: original_image(original, z), graph_vjp(source.generator)


def original_image(original: Original, z: Array) -> Array:
    """Item by item, because the file may be fixed to a batch of one."""
    engine = Engine(original.content)
    items = [engine({original.latent: row.reshape(1, *original.shape)}) for row in z]
    return np.concatenate([item[original.image] for item in items]).astype(np.float64)


def torch_image(network: Any, x: Array) -> Array:
    """Output of a torch network in float64."""
    import copy

    import torch

    with torch.no_grad():
        result: Array = copy.deepcopy(network).double()(torch.from_numpy(x).double()).numpy()
    return result


def torch_vjp(network: Any, name: str, x: Array, cotangent: Array) -> Gradients:
    """Vector-Jacobian product of a torch network in float64."""
    import copy

    import torch

    leaf = torch.from_numpy(x).double().requires_grad_()
    value = copy.deepcopy(network).double()(leaf)
    (gradient,) = torch.autograd.grad((value * torch.from_numpy(cotangent).double()).sum(), leaf)
    return {name: gradient.numpy()}


def graph_vjp(model: onnx.ModelProto, weights: bool = False) -> Vjp:
    """Gradient of an ONNX graph by torch in float64, of its weights too where asked."""
    import torch

    from unblemish.runtime.backends.torch_graph import TorchGraph

    graph = TorchGraph(model, dtype=torch.float64)

    def vjp(z: Array, cotangent: Array) -> Gradients:
        leaf = torch.from_numpy(z).double().requires_grad_()
        value = graph(**{LATENT: leaf})[IMAGE]
        leaves = {LATENT: leaf, **(graph.weights if weights else {})}
        total = (value * torch.from_numpy(cotangent).double()).sum()
        found = torch.autograd.grad(total, list(leaves.values()))
        return {name: g.numpy() for name, g in zip(leaves, found, strict=True)}

    return vjp
