"""F2PAD by engines of few sizes: every crop and every batch has one, on the host and on the device.

TensorRT's double runs what ONNX Runtime makes of the graphs that the engines were built of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tensorrt_results import compute

from unblemish.bundle import Bundle, write_bundle
from unblemish.export.engines.options import EngineOptions
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.detectors.protocol import FeaturePrograms
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.methods.f2pad import F2pad
from unblemish.runtime.methods.f2pad_plan import plan_for

NEWEST = pytest.mark.parametrize("tensorrt", ["11.4.0.5"], indirect=True)
SIZES = ((64, 48), (48, 32))


def bundle_of(tiny: Any, graphs: Path, out: Path) -> Bundle:
    """The tiny detector with its graphs in it."""
    from unblemish.export.detector import _records

    models = {
        role: onnx.load(graphs / f"{name}.onnx")
        for role, name in (
            ("features", "plain"),
            ("features_forward", "forward"),
            ("features_backward", "backward"),
        )
    }
    manifest = tiny.bundle.manifest
    records: Any = models
    fields = {
        **manifest.model_dump(exclude={"files"}),
        "graphs": _records(records, 1, manifest.preprocess.model_dump()),
    }
    files = {f"graphs/{role}.onnx": model.SerializeToString() for role, model in models.items()}
    return write_bundle(out, files, fields)


@pytest.fixture
def built(tensorrt: Any, make_tiny: Callable[..., Any], tmp_path: Path) -> tuple[Any, Any, Bundle]:
    """The double, the detector, and its bundle with engines."""
    from unblemish.export.engines.bundle_engines import build_engines

    tensorrt.on_execute = compute(tensorrt)
    tiny = make_tiny()
    bundle = bundle_of(tiny, tmp_path, tmp_path / "part.bundle")
    options = EngineOptions(batch=2, usual_batch=1, sizes=SIZES)
    memory = tensorrt.memory_of(tensorrt)
    return tensorrt, tiny, build_engines(bundle, options, memory=memory, say=lambda _: None)


def planted() -> Any:
    """A part as the detector knows it, with a small bright patch."""
    rng = np.random.default_rng(11)
    base = 0.45 + 0.1 * np.linspace(0, 1, 48)[None, :, None]
    frame = np.clip(base + 0.02 * rng.standard_normal((64, 48, 1)), 0, 1)
    frame[2:8, 2:8] = 0.9
    return frame.astype(np.float32)


@NEWEST
def test_engines_are_built_for_the_tile_and_for_smaller_crops(built: Any) -> None:
    from unblemish.export.engines.prepare import sizes_of

    manifest = built[2].manifest
    assert {record.size for record in manifest.engines} == set(SIZES)
    for roles in (("features",), ("features_forward", "features_backward")):
        sizes = sizes_of(manifest, roles, EngineOptions())  # 4 times `align`, by default
        assert sizes == ((64, 48), (32, 32))


@NEWEST
@pytest.mark.parametrize("schedule", ["fast", "descent"])
def test_every_pass_of_a_search_has_an_engine(built: Any, schedule: str) -> None:
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    world, tiny, bundle = built
    backend = TensorRtBackend(world.memory)
    paths = [str(bundle.graph(role)) for role in ("features_forward", "features_backward")]
    programs = FeaturePrograms(backend.program(str(bundle.graph("features"))), backend.pair(*paths))
    assert programs.sizes == SIZES
    plan = replace(plan_for(schedule, bundle.manifest.f2pad), margin=0)
    inputs, masks = tiny.inputs(planted()), []
    for detector in (tiny.detector, replace(tiny.detector, programs=programs)):
        search = F2pad(bundle, detector, NumpyKernels(), plan=plan, threshold=tiny.threshold)
        world.calls.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # another backend would say that it runs
            masks.append(search.refine(*inputs).mask)
    shapes = {s for _, s in world.called("IExecutionContext", "set_input_shape") if len(s) == 4}
    assert {shape[2:] for shape in shapes if shape[1] == 1} == set(SIZES)
    union = (masks[0] | masks[1]).sum()
    assert (masks[0] & masks[1]).sum() > 0.85 * union


def passes_are_those_of_the_host(engines: DeviceEngines, bundle: Bundle) -> None:
    """Features and gradient of several sizes and batches, one after the other."""
    kernels, device = engines.kernels, engines.kernels.device
    paths = [str(bundle.graph(role)) for role in ("features_forward", "features_backward")]
    exact, rng = OrtBackend(1).pair(*paths), np.random.default_rng(0)
    for shape in ((3, 1, 48, 32), (2, 1, 64, 48), (1, 1, 48, 32)):
        image = rng.standard_normal(shape).astype(np.float32)
        want = np.array(exact.forward({"image": image})["features"])
        cotangent = rng.standard_normal(want.shape).astype(np.float32)
        pair = engines.pair(*paths, {"image": device.to_device(image)})
        assert pair.capturable
        pair.forward.enqueue(kernels.stream)
        device.upload(pair.cotangents["features"], cotangent)
        pair.backward.enqueue(kernels.stream)
        found = device.to_host(pair.forward.outputs["features"])
        np.testing.assert_allclose(found, want, atol=1e-5)
        gradient = exact.backward({"features": cotangent})["image"]
        np.testing.assert_allclose(device.to_host(pair.gradients["image"]), gradient, atol=1e-4)


@NEWEST
def test_passes_on_the_device_are_chosen_by_size(
    built: Any, make_driver: Callable[..., Any]
) -> None:
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    world, _, bundle = built
    kernels = CudaKernels(driver=make_driver())
    world.drive(world, kernels.device.driver)
    passes_are_those_of_the_host(TensorRtBackend(world.memory).on_device(kernels), bundle)


@pytest.mark.gpu
def test_passes_on_hardware_are_those_of_the_host(
    make_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt")
    pytest.importorskip("pycuda.driver")
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    bundle = bundle_of(make_tiny(), tmp_path, tmp_path / "part.bundle")
    options = EngineOptions(batch=4, usual_batch=2, sizes=SIZES)
    made = build_engines(bundle, options, say=lambda _: None)
    passes_are_those_of_the_host(TensorRtBackend().on_device(CudaKernels()), made)
