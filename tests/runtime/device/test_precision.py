"""Searches on the device by engines of less than float32: the graph alone has the short types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from emulated_backend import EmulatedBackend
from onnx import numpy_helper, parser

from unblemish.export import differentiate
from unblemish.export.precision.graphs import emulated, half_graphs
from unblemish.export.precision.quantise import quantise
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.device import DeviceInversion, Replay, Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.inversion import GeneratorPasses
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Targets
from unblemish.runtime.methods.joint import JointInversion
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Limits
from unblemish.runtime.solvers.loop import run as run_on_host

IMAGE = (2, 10, 12)


def _generator() -> onnx.ModelProto:
    """z (batch, 6) -> images by four convolutions, a norm by hand, a square and a sigmoid."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[batch,6] z) => (float[batch,2,10,12] image)
        <int64[4] shape = {-1, 3, 10, 12}, int64[3] axes = {1, 2, 3}> {
            l = MatMul(z, w) x = Reshape(l, shape)
            a = Conv<pads = [1,1,1,1]>(x, w0, b0) b = Relu(a)
            m = ReduceMean<keepdims = 1>(b, axes) n = Sub(b, m)
            c = Conv<pads = [1,1,1,1]>(n, w1, b1) d = Mul(c, c)
            e = Conv<pads = [1,1,1,1]>(d, w2, b2) f = Relu(e)
            h = Conv<pads = [1,1,1,1]>(f, w3, b3) image = Sigmoid(h) }""")
    rng = np.random.default_rng(0)
    arrays = {"w": 0.5 * rng.standard_normal((6, 360))}
    channels = [3, 6, 5, 4, 2]
    for i in range(4):
        before, after = channels[i : i + 2]
        arrays[f"w{i}"] = rng.standard_normal((after, before, 3, 3)) / np.sqrt(4.5 * before)
        arrays[f"b{i}"] = 0.1 * rng.standard_normal(after)
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return model


def _graphs(precision: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    both = differentiate(_generator(), wrt=["z"])
    roles: Any = {"generator_forward": both.forward, "generator_backward": both.backward}
    if precision == "int8":
        rng = np.random.default_rng(1)
        feeds = [{"z": rng.standard_normal((4, 6)).astype(np.float32)} for _ in range(4)]
        return quantise(both.forward, feeds).model, both.backward
    if precision != "fp32":
        roles = half_graphs(roles, precision)
    if precision == "bf16":  # which no CPU runs
        roles = emulated(roles, precision)
    return roles["generator_forward"], roles["generator_backward"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_search_is_that_of_the_host_in_the_same_precision(
    kernels: Any, tmp_path: Path, precision: str
) -> None:
    paths = [str(tmp_path / f"{way}.onnx") for way in ("forward", "backward")]
    for path, graph in zip(paths, _graphs(precision), strict=True):
        onnx.save(graph, path)
    rng = np.random.default_rng(2)
    z = rng.normal(size=(3, 6)).astype(np.float32)
    engine = GeneratorEngine(OrtBackend(1).pair(*paths), "z", "image")
    images = engine.forward(rng.normal(size=(3, 6)).astype(np.float32)).copy()
    images[:, :, 3:5, 4:8] = 1.0
    lam, limits = np.full(3, 0.1, np.float32), Limits(15)
    host = JointInversion(engine, NumpyKernels(), Targets(images, np.arange(3)), lam)
    mask = np.zeros((3, 1, *IMAGE[1:]), np.float32)
    expected = run_on_host(host, Adam(NumpyKernels(), (0.1, 0.1)), (z, mask), limits)
    pair = EmulatedBackend().on_device(kernels).pair(*paths, {"z": kernels.device.zeros(z.shape)})
    passes = GeneratorPasses.of(pair)
    for array in (passes.latent, passes.image, passes.cotangent, passes.gradient):
        assert array.dtype == np.float32
    if precision == "fp16":
        assert np.dtype(np.float16) in {array.dtype for array in pair.forward.outputs.values()}
    step = DeviceInversion(kernels, passes, Ends.of(limits))
    step.start(images, z, lam)
    found = step.outcome(run(kernels.device, Replay(kernels.device, step), Schedule(5)))
    assert found.status == expected.status
    for ours, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    np.testing.assert_allclose(found.best[0], expected.best[0], atol=1e-2)
