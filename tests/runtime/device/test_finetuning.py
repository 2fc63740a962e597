"""R-RGI on the device against that of the host: by weight-gradient graphs and by torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend

from unblemish.bundle import Bundle
from unblemish.errors import BackendError, ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.finetuner import DeviceFinetuner
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.losses import image_loss
from unblemish.runtime.methods.rgi import Solution
from unblemish.runtime.methods.rrgi import Finetuner, HostFinetuner, load_finetuner

STEPS = 12
# Adam divides by the size of a gradient: where that is near 0, roundings are steps of `finetune_lr`.
TRACE, IMAGE = {"rtol": 1e-4}, {"atol": 2e-4}


def _bundle(make_bundle: Any, *, graphs: bool = True, channels: int = 3, **rgi: Any) -> Bundle:
    settings = {"lam": 0.02, "finetune_steps": STEPS, "finetune_lr": 1e-3, **rgi}
    made: Bundle = make_bundle(channels=channels, rgi=settings, finetune=graphs)
    return made


class _Case:
    """The same images, latents and objective for both sides."""

    def __init__(self, bundle: Bundle, count: int = 3, seed: int = 4) -> None:
        rng = np.random.default_rng(seed)
        settings, channels = bundle.manifest.rgi, bundle.manifest.preprocess.channels
        pair = OrtBackend(1).pair(
            str(bundle.graph("generator_forward")), str(bundle.graph("generator_backward"))
        )
        self.generator = GeneratorEngine(pair, "z", "image")
        self.z = rng.standard_normal((count, 4)).astype(np.float32)
        self.made = self.generator.forward(self.z).copy()
        ramp = np.linspace(-0.06, 0.06, 16, dtype=np.float32)
        self.images = self.made + ramp + 0.01 * rng.standard_normal(self.made.shape)
        self.images[:, :, 4:9, 6:11] = 0.98
        lam = np.linspace(0.01, 0.1, count, dtype=np.float32)
        assert self.images.shape == (count, channels, 16, 16)
        self.inversion = Inversion(
            self.generator, image_loss(NumpyKernels(), settings.loss, masked=True),
            Targets(self.images.astype(np.float32), np.arange(count)), lam[None],
            settings.mask == "shared", latent_weight=settings.latent_weight,
        )  # fmt: skip
        self.found = Solution(
            self.z, None, np.full(count, 1.0), (Status.CONVERGED,) * count,
            np.full(count, 7), (np.ones(7),) * count,
        )  # fmt: skip

    def refined(
        self, finetuner: Finetuner, deadline: float | None = None, clock: Any = time.perf_counter
    ) -> Solution:
        return finetuner.refine(self.inversion, self.found, deadline, clock)


def _host(bundle: Bundle, **options: Any) -> HostFinetuner:
    found = load_finetuner(bundle, OrtBackend(1), NumpyKernels(), threads=1, **options)
    assert isinstance(found, HostFinetuner)
    return found


def _device(bundle: Bundle, kernels: CudaKernels, **options: Any) -> DeviceFinetuner:
    backend = EmulatedBackend(capturable=options.pop("capturable", True))
    engines = backend.on_device(kernels)
    found = load_finetuner(
        bundle, OrtBackend(1), NumpyKernels(), threads=1, device=engines, **options
    )
    assert isinstance(found, DeviceFinetuner)
    return found


def _assert_same(ours: Solution, theirs: Solution) -> None:
    assert ours.status == theirs.status
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    for one, other in zip(ours.trace, theirs.trace, strict=True):
        np.testing.assert_allclose(one, other, **TRACE)
    np.testing.assert_allclose(ours.value, theirs.value, **TRACE)
    assert ours.images is not None
    assert theirs.images is not None
    np.testing.assert_allclose(ours.images, theirs.images, **IMAGE)
    np.testing.assert_allclose(ours.z, theirs.z, **IMAGE)


@pytest.mark.parametrize("by", ["graphs", "torch"])
@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(
    ("channels", "rgi"),
    [(1, {}), (3, {}), (3, {"mask": "element"}), (3, {"latent_weight": 0.05})],
    ids=["grey", "colour", "element", "prior"],
)
def test_finetuning_is_that_of_the_host(
    make_bundle: Any, kernels: Any, by: str, paper: bool, channels: int, rgi: dict[str, Any]
) -> None:
    if by == "torch":
        pytest.importorskip("torch")
    bundle = _bundle(make_bundle, graphs=by == "graphs", channels=channels, **rgi)
    case = _Case(bundle)
    ours = case.refined(_device(bundle, kernels, paper=paper))
    _assert_same(ours, case.refined(_host(bundle, paper=paper)))
    assert all(t[-1] < t[7] for t in ours.trace)
