"""F2PAD written plainly in eager torch: the yardstick for speed and the second opinion on masks.

As one would write it from seed 003: autograd through the network on the whole image, gradient
sharing by `unfold`, Adan in torch, every score of the image in the loss. PaDiM (100 random channels
of layers 1-3) and PatchCore (layers 2 and 3) on a ResNet18. Pixels count in ImageNet standard
deviations. Settings are the paper's (section IV-A3); where it leaves a choice, `Settings` says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unblemish.images import list_images, read_image

Mask = NDArray[np.bool_]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Settings:
    """Settings of the refinement; the paper's where it states them.

    Args:
        alpha1, beta0: chosen per category by grid search in the paper; these, `rate` and
            `tolerance` are the best on five images of brick.
        rate: what gamma_0 multiplies. With gamma_0 = 1 taken as Adan's own step a single update
            would cross the range of intensities, since Adan normalises the gradient.
        floor: smallest |a| that the step of eq. (15) is divided by.
        decrease: stop below this decrease of the objective (PaDiM 0.1, others 0.05); patience: so
            many times in a row, since the objective of Adan does not fall monotonically.
        steps: so many instead of the stopping rule, which ends some images within six.
        tolerance: a_ij counts as zero up to this norm.
        dilation: of the initial mask, px.
    """

    alpha1: float = 0.01
    alpha2: float = 1e-4
    beta0: float = 1e5
    epsilon: float = 1e-4
    step_size: float = 1.0
    rate: float = 0.03
    floor: float = 0.05
    radius: int = 5
    sigma_space: float = 1.1
    sigma_colour: float = 3.0
    clip: float = 0.03
    decrease: float = 0.1
    patience: int = 5
    max_steps: int = 1200
    steps: int | None = None
    tolerance: float = 0.8
    dilation: int = 8


@dataclass(frozen=True)
class Refined:
    """Result: mask (H, W), restored image n (H, W, 3) in [0, 1], iterations and seconds."""

    mask: Mask
    n: NDArray[np.float32]
    iterations: int
    seconds: float


class ResNet18(torch.nn.Module):
    """ResNet18 up to layer3 from batch-norm-folded weights, with torchvision's layer names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file

        self._w = load_file(path)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of layer1, layer2 and layer3 for x (batch, 3, H, W), normalised."""
        x = F.max_pool2d(F.relu(self._conv("conv1", x, 2)), 3, 2, 1)
        outputs = []
        for layer in (1, 2, 3):
            for block in (0, 1):
                stride = 2 if layer > 1 and block == 0 else 1
                name = f"layer{layer}.{block}"
                y = F.relu(self._conv(f"{name}.conv1", x, stride))
                y = self._conv(f"{name}.conv2", y, 1)
                x = x if stride == 1 else self._conv(f"{name}.downsample.0", x, stride)
                x = F.relu(x + y)
            outputs.append(x)
        return outputs

    def _conv(self, name: str, x: Tensor, stride: int) -> Tensor:
        weight = self._w[f"{name}.weight"]
        return F.conv2d(x, weight, self._w[f"{name}.bias"], stride, weight.shape[-1] // 2)


class Model:
    """What PaDiM and PatchCore share: features, the plain map and the pixel prior."""

    def __init__(self, network: ResNet18, images: Tensor, components: int, seed: int) -> None:
        self.network = network
        with torch.no_grad():
            self.learn(torch.cat([self.features(part) for part in torch.split(images, 8)]), seed)
        self.means, self.precisions = pixel_prior(images, components, seed)

    def features(self, x: Tensor) -> Tensor:
        """Features (batch, h, w, c) of normalised images."""
        raise NotImplementedError

    def learn(self, features: Tensor, seed: int) -> None:
        """Fit the normal features, (images, h, w, c)."""
        raise NotImplementedError

    def candidates(self, features: Tensor) -> Any:
        """What the scores near these features need (eq. 5); nothing by default."""
        return None

    def scores(self, features: Tensor, candidates: Any = None) -> Tensor:
        """Anomaly scores (batch, h, w)."""
        raise NotImplementedError

    @torch.no_grad()
    def plain_map(self, image: NDArray[Any], sigma: float = 4.0) -> NDArray[np.float32]:
        """Score map of the detector itself, (H, W)."""
        x = normalised(image)
        scores = self.scores(self.features(x))[:, None].sqrt()
        large = F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=False)
        return np.asarray(cv2.GaussianBlur(large[0, 0].numpy(), (0, 0), sigma), np.float32)


class Padim(Model):
    """PaDiM: squared Mahalanobis distance per location (eq. 7)."""

    def features(self, x: Tensor) -> Tensor:
        """All layers at the size of the first, by repeating."""
        layers = self.network(x)
        size = layers[0].shape[2:]
        whole = torch.cat([F.interpolate(f, size, mode="nearest") for f in layers], 1)
        chosen = torch.from_numpy(np.random.default_rng(0).permutation(whole.shape[1])[:100].copy())
        return whole[:, chosen].permute(0, 2, 3, 1)

    def learn(self, features: Tensor, seed: int) -> None:
        """Mean and inverse covariance, 0.01 added to the variances, at every location."""
        self.mean = features.mean(0)
        centred = (features - self.mean).flatten(1, 2).permute(1, 0, 2)
        covariance = centred.transpose(1, 2) @ centred / (len(features) - 1)
        covariance += 0.01 * torch.eye(features.shape[-1])
        inverse = torch.linalg.inv(covariance)
        self.inverse = inverse.view(*self.mean.shape, -1)

    def scores(self, features: Tensor, candidates: Any = None) -> Tensor:
        """Eq. (7)."""
        d = features - self.mean
        return torch.einsum("bhwi,hwij,bhwj->bhw", d, self.inverse, d)


class PatchCore(Model):
    """PatchCore: squared distance to the nearest of a bank of normal features (eqs. 4, 5)."""

    bank_size = 15000
    near = 50

    def features(self, x: Tensor) -> Tensor:
        """Layers 2 and 3, averaged over 3 x 3, at the size of layer 2."""
        _, second, third = (F.avg_pool2d(f, 3, 1, 1) for f in self.network(x))
        third = F.interpolate(third, second.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([second, third], 1).permute(0, 2, 3, 1)

    def learn(self, features: Tensor, seed: int) -> None:
        """Keep a random part of all features."""
        flat = features.flatten(0, 2)
        chosen = np.random.default_rng(seed).permutation(len(flat))[: self.bank_size]
        self.bank = flat[torch.from_numpy(chosen.copy())].clone()

    def candidates(self, features: Tensor) -> Tensor:
        """The nearest of the bank to every feature, (h w, near, c)."""
        nearest = torch.cdist(features.flatten(0, 2), self.bank).topk(self.near, largest=False)
        return self.bank[nearest.indices]

    def scores(self, features: Tensor, candidates: Any = None) -> Tensor:
        """Eq. (5) with candidates, eq. (4) without."""
        flat = features.flatten(0, 2)
        if candidates is None:
            best = torch.cdist(flat, self.bank).square().min(1).values
        else:
            best = (flat[:, None] - candidates).square().sum(2).min(1).values
        return best.view(features.shape[:3])


def normalised(image: NDArray[Any]) -> Tensor:
    """(1, 3, H, W) in ImageNet units from uint8 or [0, 1], grey or RGB."""
    x = torch.from_numpy(np.asarray(image, np.float32) / (255 if image.dtype == np.uint8 else 1))
    x = x[..., None].expand(*x.shape, 3) if x.ndim == 2 else x
    return (x.permute(2, 0, 1)[None] - MEAN) / STD


def pixel_prior(images: Tensor, components: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means (Q, 3) and precisions (Q, 3, 3) of the mixture of Gaussians of eq. (9)."""
    from sklearn.mixture import BayesianGaussianMixture

    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    chosen = np.random.default_rng(seed).choice(len(pixels), min(20000, len(pixels)), replace=False)
    mixture = BayesianGaussianMixture(
        n_components=components, reg_covar=1e-3, max_iter=200, random_state=seed
    ).fit(pixels[chosen])
    return (
        torch.tensor(mixture.means_, dtype=torch.float32),
        torch.tensor(mixture.precisions_, dtype=torch.float32),
    )


def log_penalty(a: Tensor, epsilon: float) -> Tensor:
    """Eq. (8); the norm's derivative at 0 is taken as 0."""
    square = a.square().sum(1)
    norm = torch.where(square > 0, square, torch.ones_like(square)).sqrt() * (square > 0)
    return torch.log((square + epsilon).sqrt() + norm).sum()


def prior(n: Tensor, means: Tensor, precisions: Tensor) -> Tensor:
    """Eq. (10)."""
    d = n.permute(0, 2, 3, 1)[..., None, :] - means
    return torch.einsum("bhwqi,qij,bhwqj->bhwq", d, precisions, d).min(-1).values.sum()


def total_variation(n: Tensor) -> Tensor:
    """Eq. (11); 0 is the derivative where a difference is 0."""
    total = n.new_zeros(())
    for d in (n[:, :, 1:] - n[:, :, :-1], n[:, :, :, 1:] - n[:, :, :, :-1]):
        square = d.square().sum(1)
        positive = square > 0
        total = total + torch.where(positive, square, 1.0).sqrt()[positive].sum()
    return total


def sharing_weights(x: Tensor, s: Settings) -> Tensor:
    """Eq. (14): (1, (2 k + 1)^2, H, W), summing to 1 over the neighbours inside the image."""
    k = 2 * s.radius + 1
    height, width = x.shape[2:]
    around = F.unfold(x, k, padding=s.radius).view(3, k * k, height, width)
    inside = F.unfold(torch.ones_like(x[:, :1]), k, padding=s.radius).view(k * k, height, width)
    colour = (around - x.view(3, 1, height, width)).square().sum(0)
    offset = torch.arange(-s.radius, s.radius + 1.0).square()
    space = (offset[:, None] + offset[None]).view(-1, 1, 1)
    weights = inside * torch.exp(-space / s.sigma_space - colour / s.sigma_colour)
    return (weights / weights.sum(0))[None]


def share(gradient: Tensor, weights: Tensor, radius: int) -> Tensor:
    """Eq. (13)."""
    _, channels, height, width = gradient.shape
    around = F.unfold(gradient, 2 * radius + 1, padding=radius)
    return (around.view(1, channels, -1, height, width) * weights[:, None]).sum(2)


class Adan:
    """Adan (Xie et al.) with its recommended betas and a step size per component."""

    def __init__(self, like: Tensor) -> None:
        self._first, self._slope, self._second = (torch.zeros_like(like) for _ in range(3))
        self._previous: Tensor | None = None
        self._count = 0

    def direction(self, g: Tensor) -> Tensor:
        """What the step size multiplies."""
        self._count += 1
        b1, b2, b3 = 0.98, 0.92, 0.99
        change = torch.zeros_like(g) if self._previous is None else g - self._previous
        self._previous = g.clone()
        self._first.mul_(b1).add_(g, alpha=1 - b1)
        self._slope.mul_(b2).add_(change, alpha=1 - b2)
        self._second.mul_(b3).add_((g + b2 * change).square(), alpha=1 - b3)
        first = self._first / (1 - b1**self._count)
        slope = self._slope / (1 - b2**self._count)
        second = self._second / (1 - b3**self._count)
        return (first + b2 * slope) / (second.sqrt() + 1e-8)


def refine(image: NDArray[Any], model: Model, mask0: Mask, settings: Settings) -> Refined:
    """Algorithm 1 up to line 9: from the detector's mask to the mask of a_ij != 0.

    Args:
        image: (H, W) or (H, W, 3), uint8 or [0, 1].
        mask0: (H, W); an empty one is returned as it is, and nothing is optimised.
    Source: seed 003; n^(0) by classical inpainting where the paper has a masked autoencoder.
    """
    begin, s = time.perf_counter(), settings
    x = normalised(image)
    if not mask0.any():
        return Refined(mask0.copy(), picture(x), 0, time.perf_counter() - begin)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * s.dilation + 1,) * 2)
    free_mask = cv2.dilate(mask0.astype(np.uint8), kernel)
    n, steps = _optimise(x, inpainted(image, free_mask), free_mask, model, s, int(mask0.sum()))
    residual = (x - n).square().sum(1).sqrt()[0].numpy()
    raw = (residual > s.tolerance).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(raw, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0)
    return Refined(mask, picture(n), steps, time.perf_counter() - begin)


def _optimise(
    x: Tensor, n: Tensor, free_mask: NDArray[Any], model: Model, s: Settings, area: int
) -> tuple[Tensor, int]:
    free = torch.from_numpy(free_mask.astype(np.float32))[None, None]
    lower, upper, beta = (0 - MEAN) / STD, (1 - MEAN) / STD, s.beta0 / area
    with torch.no_grad():
        candidates = model.candidates(model.features(n))
    weights, adan = sharing_weights(x, s), Adan(n)
    before, calm, steps = float("inf"), 0, 0
    for steps in range(1, (s.steps or s.max_steps) + 1):  # noqa: B007
        n = n.detach().requires_grad_()
        loss = model.scores(model.features(n), candidates).sum()
        loss = loss + s.alpha1 * prior(n, model.means, model.precisions)
        loss = loss + s.alpha2 * total_variation(n) + beta * log_penalty(x - n, s.epsilon)
        (gradient,) = torch.autograd.grad(loss, n)
        with torch.no_grad():
            g = share(gradient, weights, s.radius).clamp(-s.clip, s.clip) * free
            gamma = s.rate * s.step_size / (x - n).abs().clamp_min(s.floor)
            n = torch.maximum(torch.minimum(n - gamma * adan.direction(g) * free, upper), lower)
        calm = calm + 1 if before - loss.item() < s.decrease else 0
        before = min(before, loss.item())
        if s.steps is None and calm >= s.patience:
            break
    return n.detach(), steps


def inpainted(image: NDArray[Any], hole: NDArray[Any]) -> Tensor:
    """n^(0): the image with the hole filled from its border."""
    whole = np.asarray(image if image.dtype == np.uint8 else np.rint(255 * image), np.uint8)
    return normalised(np.asarray(cv2.inpaint(whole, hole, 3, cv2.INPAINT_TELEA)))


def picture(n: Tensor) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1]."""
    return np.asarray((n * STD + MEAN)[0].permute(1, 2, 0).numpy().clip(0, 1))


def load_normals(folder: Path, most: int | None = None) -> Tensor:
    """Normalised training images of a set, (images, 3, H, W)."""
    return torch.cat([normalised(read_image(p)) for p in list_images([folder])[:most]])
