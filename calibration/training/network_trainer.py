"""Training of one network with a linear part in closed form, by Adam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from unblemish.calibration.training.ema import MovingAverage
from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.ppca import fit_linear_part, samples_for
from unblemish.export.models.autoencoder import Autoencoder
from unblemish.export.models.checkpoint import settings_of
from unblemish.export.models.vae import Vae

Network = TypeVar("Network", Vae, Autoencoder)
GENTLE = 0.05  # rate of the layers that start silent


class NetworkTrainer(ABC, Generic[Network]):
    """One network, one Adam, one moving average: the update, and what another run goes on from.

    What is learned, a loss of images in the network's own intensities, is the subclass's.

    Args:
        make: builds the network; called once, after the seed is set.
    """

    kind: str

    def __init__(self, options: TrainOptions, make: Callable[[], Network]) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = torch.channels_last  # measured: 1.2 (float32) and 1.3 (bfloat16) times faster
        self.network: Network = make().to(self.device)
        self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.average: MovingAverage[Network] = MovingAverage(self.network)
        self.optimiser = torch.optim.Adam(self._groups(), betas=(0.9, 0.99))
        self.bfloat16 = False
        self.progress = 0.0

    @abstractmethod
    def _silent(self) -> tuple[nn.Module | None, ...]:
        """Layers that give zeros until they have learned otherwise, beside a linear part."""

    @abstractmethod
    def _prepared(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] in the network's own intensities."""

    @abstractmethod
    def _loss(self, image: Tensor, found: Any) -> Tensor:
        """What an update lowers; `found` is what the network gave for `image`."""

    @abstractmethod
    def _image(self, found: Any) -> Tensor:
        """The reconstruction in what the network gave."""

    def _groups(self) -> list[dict[str, Any]]:
        """Layers that start silent, beside a linear part that is right already, move gently.

        Adam's first steps have the size of the rate in every weight, and these layers sum over up
        to thousands of inputs: at the full rate they would first undo the closed form.
        """
        silent = self._silent() if self.network.settings.canvas else ()
        gentle = {id(p) for layer in silent if layer is not None for p in layer.parameters()}
        free = [p for p in self.network.parameters() if p.requires_grad]
        return [
            {"params": [p for p in free if id(p) not in gentle], "factor": 1.0},
            {"params": [p for p in free if id(p) in gentle], "factor": GENTLE},
        ]

    def begin(self, draw: Callable[[int], Tensor]) -> None:
        """Fit the linear part, in closed form; `draw` gives images."""
        if not self.network.settings.canvas:
            return
        images = self._prepared(draw(samples_for(self.network.settings.latent)))
        fit_linear_part(self.network, images.to(self.device))
        self.average = MovingAverage(self.network)

    def step(self, images: Tensor, generator: torch.Generator, step: int, lr: float) -> float:
        """One update. `images`: (batch, C, size, size) in [-1, 1]. Returns the loss."""
        images = self._prepared(images).to(self.device, memory_format=torch.channels_last)
        noise = torch.randn(len(images), self.network.settings.latent, generator=generator)
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            found = self.network(images, noise.to(self.device))
        loss = self._loss(images, found)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimiser.step()
        self.average.update(self.network, step)
        return float(loss.detach())

    def _decoded(self, images: Tensor) -> Tensor:
        """Decoded means of images in [-1, 1], by the moving average, in its intensities."""
        found = self.average.network(self._prepared(images).to(self.device))
        return self._image(found).float().cpu()

    def settings_plain(self) -> dict[str, Any]:
        """Settings of the network, as a checkpoint stores them."""
        return settings_of(self.network.settings)

    def weights(self) -> dict[str, Tensor]:
        """The moving average."""
        return dict(self.average.network.state_dict())

    def discriminator(self) -> dict[str, Tensor] | None:
        """There is none."""
        return None

    def growth(self) -> dict[str, float]:
        """The network does not grow."""
        return {}

    def state(self) -> dict[str, Any]:
        """What another run needs to go on exactly."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `weights` and `state`."""
        self.average.network.load_state_dict(dict(weights))
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
