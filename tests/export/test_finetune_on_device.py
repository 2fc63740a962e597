"""The graphs with free weights of an exported PGGAN over device arrays, weights bound in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from emulated_driver import EmulatedDriver
from tensorrt_results import compute

from unblemish.bundle import Bundle
from unblemish.export.build import write_plan
from unblemish.export.engines.options import EngineOptions
from unblemish.export.options import ExportOptions
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.steps.finetuning import WeightMemory, WeightPasses
from unblemish.runtime.methods.rrgi import read_weights


@pytest.fixture
def bundle(pggan_plan: Any, tmp_path: Path) -> Bundle:
    source, made = pggan_plan
    return write_plan(made, source, tmp_path / "part.bundle", ExportOptions())


@pytest.fixture
def kernels(make_driver: Callable[..., EmulatedDriver]) -> CudaKernels:
    return CudaKernels(driver=make_driver())


def _assert_weights_are_read(bundle: Bundle, engines: DeviceEngines) -> None:
    """Image and gradients are the host's under weights written after the engine was opened."""
    paths = [str(bundle.graph(role)) for role in ("finetune_forward", "finetune_backward")]  # type: ignore[arg-type]
    device, rng = engines.kernels.device, np.random.default_rng(0)
    z = rng.standard_normal((1, bundle.manifest.model.latent_size)).astype(np.float32)
    weights = {name: array.copy() for name, array in read_weights(bundle).items()}
    memory = WeightMemory.holding(device, weights)
    pair = engines.pair(paths[0], paths[1], {"z": device.zeros(z.shape), **memory.parts})
    passes = WeightPasses.of(pair, "z", "image")
    assert set(passes.gradients) == set(weights)
    assert pair.capturable
    for name, array in weights.items():
        array += 0.1 * rng.standard_normal(array.shape).astype(np.float32)
        device.upload(memory.parts[name], array)
    device.upload(passes.generator.latent, z)
    host = OrtBackend(1).pair(*paths)
    image = host.forward({"z": z, **weights})["image"].copy()
    cotangent = rng.standard_normal(image.shape).astype(np.float32)
    expected = host.backward({"image": cotangent})
    device.upload(passes.generator.cotangent, cotangent)
    for one in (passes.generator.forward, passes.generator.backward):
        one.enqueue(engines.kernels.stream)
    np.testing.assert_allclose(device.to_host(passes.generator.image), image, rtol=1e-5, atol=1e-6)
    found = {"z": passes.generator.gradient, **passes.gradients}
    for name, gradient in found.items():
        close = {"rtol": 1e-4, "atol": 1e-5 * float(np.abs(expected[name]).max())}
        np.testing.assert_allclose(device.to_host(gradient), expected[name], **close)


def test_weights_are_read_where_they_lie(bundle: Bundle, kernels: CudaKernels) -> None:
    _assert_weights_are_read(bundle, EmulatedBackend().on_device(kernels))


@pytest.mark.parametrize("tensorrt", ["10.16.1.11", "11.4.0.5"], indirect=True)
def test_engines_of_tensorrt_read_them_there_too(
    tensorrt: Any, bundle: Bundle, kernels: CudaKernels
) -> None:
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    tensorrt.on_execute = compute(tensorrt)
    memory = tensorrt.memory_of(tensorrt)
    built = build_engines(bundle, EngineOptions(16, 4), memory=memory, say=lambda _: None)
    tensorrt.drive(tensorrt, kernels.device.driver)
    backend = TensorRtBackend(tensorrt.memory, fallback=OrtBackend)
    _assert_weights_are_read(built, backend.on_device(kernels))
