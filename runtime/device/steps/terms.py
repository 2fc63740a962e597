"""Further terms of RGI's objective on the device; see `methods.terms` and `methods.anogan`."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import GraphRole
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.methods.anogan import FeatureDistance
from unblemish.runtime.methods.terms import DiscriminatorTerm, FeatureTerm, ImageTerm


class DeviceTerm(Protocol):
    """A term in the generated image, for one batch size."""

    pair: PassPair

    def start(self, term: ImageTerm, x: DeviceArray) -> None:
        """Take the weight of the term and the inspected images (B, C, h, w); overwrites g."""

    def enqueue(
        self,
        x: DeviceArray,
        g: DeviceArray,
        mask: DeviceArray | None,
        *,
        cotangent: DeviceArray,
        objective: DeviceArray,
    ) -> None:
        """Add its value (B,) and its derivative with respect to g; mask None for 0."""


class DeviceDiscriminatorTerm:
    """`DiscriminatorTerm`; the pair reads the generated image where the generator writes it."""

    def __init__(self, kernels: CudaKernels, pair: PassPair, weight: float) -> None:
        self.pair, self._kernels, self._weight = pair, kernels, weight
        ((name, self._slope),) = pair.cotangents.items()
        self._logit = pair.forward.outputs[name]
        (self._gradient,) = pair.gradients.values()

    def start(self, term: ImageTerm, x: DeviceArray) -> None:
        """See `DeviceTerm`; the weight is that of the bundle."""

    def enqueue(
        self,
        x: DeviceArray,
        g: DeviceArray,
        mask: DeviceArray | None,
        *,
        cotangent: DeviceArray,
        objective: DeviceArray,
    ) -> None:
        """See `DeviceTerm`."""
        kernels = self._kernels
        self.pair.forward.enqueue(kernels.stream)
        kernels.disbelief(self._logit, self._weight, slope=self._slope, objective=objective)
        self.pair.backward.enqueue(kernels.stream)
        kernels.keep_unmasked(self._gradient, None, kept=cotangent, added=True)


class _Features:
    """Outputs of a network for x and for g, and their differences; `square` by l2, else by l1."""

    def __init__(self, kernels: CudaKernels, pair: PassPair, square: bool) -> None:
        self.pair, self._kernels = pair, kernels
        self._residual = kernels.residual_l2 if square else kernels.residual_l1
        (self._entry,) = (pair.forward.inputs[name] for name in pair.gradients)
        (self._gradient,) = pair.gradients.values()
        device, batch = kernels.device, self._entry.shape[0]
        self._targets = {
            name: device.empty(pair.forward.outputs[name].shape) for name in pair.cotangents
        }
        self._scales = {name: device.empty((batch,)) for name in pair.cotangents}
        self._part = device.empty((batch,), np.float64)

    def _keep_targets(self) -> None:
        """What the network makes of its present input is what is wanted."""
        self.pair.forward.enqueue(self._kernels.stream)
        for name, target in self._targets.items():
            self._kernels.device.copy(target, self.pair.forward.outputs[name])

    def _compare(self, objective: DeviceArray) -> None:
        """Add the differences at the present input, and write the gradient with respect to it."""
        self.pair.forward.enqueue(self._kernels.stream)
        for name, slope in self.pair.cotangents.items():
            self._residual(
                _as_rows(self._targets[name]), _as_rows(self.pair.forward.outputs[name]),
                self._scales[name], cotangent=_as_rows(slope), objective=self._part,
            )  # fmt: skip
            self._kernels.add_values(self._part, objective=objective)
        self.pair.backward.enqueue(self._kernels.stream)


class DeviceFeatureTerm(_Features):
    """`FeatureTerm`: features of (1 - M) x and (1 - M) g, M held fixed; an input of its own."""

    def __init__(self, kernels: CudaKernels, pair: PassPair, weight: float) -> None:
        super().__init__(kernels, pair, square=True)
        for name, target in self._targets.items():
            batch = target.shape[0]
            scale = np.full(batch, weight * batch / target.size, np.float32)
            kernels.device.upload(self._scales[name], scale)

    def start(self, term: ImageTerm, x: DeviceArray) -> None:
        """See `DeviceTerm`; the weight is that of the bundle."""

    def enqueue(
        self,
        x: DeviceArray,
        g: DeviceArray,
        mask: DeviceArray | None,
        *,
        cotangent: DeviceArray,
        objective: DeviceArray,
    ) -> None:
        """See `DeviceTerm`."""
        kernels = self._kernels
        kernels.keep_unmasked(x, mask, kept=self._entry)
        self._keep_targets()
        kernels.keep_unmasked(g, mask, kept=self._entry)
        self._compare(objective)
        kernels.keep_unmasked(self._gradient, mask, kept=cotangent, added=True)


class DeviceFeatureDistance(_Features):
    """`FeatureDistance`: the features of x are computed once, when a search begins."""

    def __init__(self, kernels: CudaKernels, pair: PassPair) -> None:
        super().__init__(kernels, pair, square=False)

    def start(self, term: ImageTerm, x: DeviceArray) -> None:
        """See `DeviceTerm`; the weight is that of this search."""
        assert isinstance(term, FeatureDistance)
        device, batch = self._kernels.device, x.shape[0]
        scale = np.full(batch, term.weight * batch / x.size, np.float32)
        for array in self._scales.values():
            device.upload(array, scale)
        device.copy(self._entry, x)
        self._keep_targets()

    def enqueue(
        self,
        x: DeviceArray,
        g: DeviceArray,
        mask: DeviceArray | None,
        *,
        cotangent: DeviceArray,
        objective: DeviceArray,
    ) -> None:
        """See `DeviceTerm`; the mask plays no part."""
        self._compare(objective)
        self._kernels.keep_unmasked(self._gradient, None, kept=cotangent, added=True)


_GRAPHS: dict[type[ImageTerm], tuple[GraphRole, GraphRole]] = {
    DiscriminatorTerm: ("discriminator_forward", "discriminator_backward"),
    FeatureTerm: ("features_forward", "features_backward"),
    FeatureDistance: ("discriminator_features_forward", "discriminator_features_backward"),
}


def open_term(
    engines: DeviceEngines,
    bundle: Bundle,
    kind: type[ImageTerm],
    weight: float,
    image: DeviceArray,
) -> DeviceTerm:
    """The term of a kind on the device, by the graphs of a bundle.

    Args:
        image: where the generator writes its images. Features of masked images have an array of
            their own for them.
    Raises: as `DeviceEngines.pair`.
    """
    kernels, (there, back) = engines.kernels, _GRAPHS[kind]
    entry = kernels.device.zeros(image.shape) if kind is FeatureTerm else image
    name = bundle.manifest.graphs[there].inputs[0].name
    pair = engines.pair(str(bundle.graph(there)), str(bundle.graph(back)), {name: entry})
    if kind is DiscriminatorTerm:
        return DeviceDiscriminatorTerm(kernels, pair, weight)
    if kind is FeatureTerm:
        return DeviceFeatureTerm(kernels, pair, weight)
    return DeviceFeatureDistance(kernels, pair)


def _as_rows(array: DeviceArray) -> DeviceArray:
    return replace(array, shape=(array.shape[0], 1, 1, array.size // array.shape[0]), strides=())
