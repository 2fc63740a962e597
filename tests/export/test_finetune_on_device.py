"""The graphs with free weights of an exported PGGAN over device arrays, weights bound in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from emulated_backend import EmulatedBackend
from emulated_driver import EmulatedDriver

from unblemish.export.build import write_plan
from unblemish.export.options import ExportOptions
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.device.finetuning import WeightMemory, WeightPasses
from unblemish.runtime.methods.rrgi import read_weights


def test_weights_are_read_where_they_lie(
    pggan_plan: Any, tmp_path: Path, make_driver: Callable[..., EmulatedDriver]
) -> None:
    source, made = pggan_plan
    bundle = write_plan(made, source, tmp_path / "part.bundle", ExportOptions())
    paths = [str(bundle.graph(role)) for role in ("finetune_forward", "finetune_backward")]  # type: ignore[arg-type]
    kernels = CudaKernels(driver=make_driver())
    device, rng = kernels.device, np.random.default_rng(0)
    z = rng.standard_normal((1, bundle.manifest.model.latent_size)).astype(np.float32)
    weights = {n: a.copy() for n, a in read_weights(bundle).items()}
    memory = WeightMemory.holding(device, weights)
    pair = (
        EmulatedBackend()
        .on_device(kernels)
        .pair(*paths, {"z": device.zeros(z.shape), **memory.parts})
    )
    passes = WeightPasses.of(pair, "z", "image")
    assert set(passes.gradients) == set(weights)
    for name, array in weights.items():  # after the engine was opened
        array += 0.1 * rng.standard_normal(array.shape).astype(np.float32)
        device.upload(memory.parts[name], array)
    device.upload(passes.generator.latent, z)
    host = OrtBackend(1).pair(*paths)
    image = host.forward({"z": z, **weights})["image"].copy()
    cotangent = rng.standard_normal(image.shape).astype(np.float32)
    expected = host.backward({"image": cotangent})
    device.upload(passes.generator.cotangent, cotangent)
    passes.generator.forward.enqueue(kernels.stream)
    passes.generator.backward.enqueue(kernels.stream)
    np.testing.assert_array_equal(device.to_host(passes.generator.image), image)
    np.testing.assert_array_equal(device.to_host(passes.generator.gradient), expected["z"])
    for name, gradient in passes.gradients.items():
        np.testing.assert_array_equal(device.to_host(gradient), expected[name])
