"""Autoencoders put together from what others trained, as the search sees them."""

from __future__ import annotations

import onnx
from torch import Tensor, nn

from unblemish.export.models.loaded import MeanOf
from unblemish.runtime.backends.torch_graph import TorchGraph


class Halves(nn.Module):
    """A generator behind its encoder: the mean path, its values as a tuple.

    `outputs` names them: reconstruction; of a VAE mean and log_variance. `kind`: vae or l2ae.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        whole = encoder.encoder if isinstance(encoder, MeanOf) else None
        # Without a variance of the code an encoder of ours holds None in its place.
        self.variational = whole is not None and getattr(whole, "log_variance", whole) is not None
        self.encoder = whole if whole is not None and self.variational else encoder
        self.decoder = decoder
        self.kind = "vae" if self.variational else "l2ae"
        self.outputs: tuple[str, ...] = ("reconstruction",)
        if self.variational:
            self.outputs += ("mean", "log_variance")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: (batch, channels, size, size). Returns the values of `outputs`."""
        if not self.variational:
            return (self.decoder(self.encoder(image)),)
        mean, log_variance = self.encoder(image)
        return self.decoder(mean), mean, log_variance


class Whole(nn.Module):
    """An ONNX autoencoder in torch: image -> (reconstruction,)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.graph = TorchGraph(model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: (batch, channels, height, width)."""
        return (self.graph(image=image)["reconstruction"],)
