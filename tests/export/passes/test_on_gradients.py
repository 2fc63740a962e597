"""Rewrites on what differentiation returns: same gradients, merged convolutions on both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from unblemish.export import differentiate
from unblemish.export.passes import (
    DEFAULT_PASSES,
    ONNXRUNTIME_PASSES,
    Pass,
    count_operators,
    optimise,
)

Fn = Callable[..., Any]

# Two stages of a PGGAN: doubling, convolution, leaky slope, pixel norm.
STAGE = """
    u{i} = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(n{j}, , scales)
    c{i} = Conv<pads=[1,1,1,1]>(u{i}, W{i}, b{i})
    a{i} = LeakyRelu<alpha=0.2>(c{i})
    s{i} = Pow(a{i}, two) m{i} = ReduceMean<axes=[1]>(s{i}) e{i} = Add(m{i}, eps)
    r{i} = Sqrt(e{i}) n{i} = Div(a{i}, r{i})
"""
PGGAN = (
    "g (float[batch,4] z) => (float[batch,3,12,12] image) {"
    "two = Constant<value_float=2.0>() eps = Constant<value_float=0.00001>()"
    "scales = Constant<value_floats=[1.0,1.0,2.0,2.0]>() shape = Constant<value_ints=[0,4,3,3]>()"
    "flat = MatMul(z, L) n0 = Reshape(flat, shape)"
    + STAGE.format(i=1, j=0)
    + STAGE.format(i=2, j=1)
    + "image = Conv(n2, W3) }"
)
VAE = """g (float[batch,4] z) => (float[batch,3,12,12] image) {
    shape = Constant<value_ints=[0,4,3,3]>()
    flat = Gemm(z, L, l) h = Relu(flat) x0 = Reshape(h, shape)
    x1 = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x0, T1, b1) h1 = Relu(x1)
    x2 = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(h1, T2, b2) h2 = Relu(x2)
    x3 = ConvTranspose<pads=[1,1,1,1]>(h2, T3) image = Sigmoid(x3)
}"""


@pytest.fixture(params=["pggan", "vae"])
def generator(request: pytest.FixtureRequest, parse: Fn, normal: Fn) -> ModelProto:
    """A small generator of 4 latents and 3 x 12 x 12 pixels."""
    if request.param == "pggan":
        return parse(
            PGGAN, L=normal(4, 36), W1=normal(6, 4, 3, 3), b1=normal(6), W2=normal(5, 6, 3, 3),
            b2=normal(5), W3=normal(3, 5, 1, 1),
        )  # fmt: skip
    return parse(
        VAE, L=normal(4, 36), l=normal(36), T1=normal(4, 6, 4, 4), b1=normal(6),
        T2=normal(6, 5, 4, 4), b2=normal(5), T3=normal(5, 3, 3, 3),
    )  # fmt: skip


def step(pair: tuple[ModelProto, ModelProto], z: Any, ct: Any, run: Fn) -> Any:
    """Gradient by way of the forward and backward graph."""
    forward, backward = pair
    names = [value.name for value in forward.graph.output]
    held = dict(zip(names, run(forward, {"z": z}), strict=True)) | {"z": z, "ct_image": ct}
    feeds = {value.name: held[value.name] for value in backward.graph.input}
    return run(backward, feeds)[0]


@pytest.mark.parametrize("passes", [DEFAULT_PASSES, ONNXRUNTIME_PASSES])
@pytest.mark.parametrize("before", [True, False])
def test_optimised_graphs_give_the_same_gradient(
    generator: ModelProto,
    passes: tuple[Pass, ...],
    before: bool,
    normal: Fn,
    run: Fn,
) -> None:
    plain = differentiate(generator, ["z"])
    ways = differentiate(optimise(generator), ["z"]) if before else plain
    fused, pair = (
        optimise(ways.fused, passes),
        (
            optimise(ways.forward, passes),
            optimise(ways.backward, passes),
        ),
    )
    for model in (fused, *pair):
        onnx.checker.check_model(model, full_check=True)
    for batch in (1, 3):
        z, ct = normal(batch, 4), normal(batch, 3, 12, 12)
        image, gradient = run(plain.fused, {"z": z, "ct_image": ct})
        found_image, found = run(fused, {"z": z, "ct_image": ct})
        by_pair = step(pair, z, ct, run)
        scale = float(np.abs(gradient).max())
        np.testing.assert_allclose(found_image, image, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found, gradient, atol=1e-4 * scale)
        np.testing.assert_allclose(by_pair, gradient, atol=1e-4 * scale)


def test_doubling_is_merged_on_both_ways_after_differentiation(parse: Fn, normal: Fn) -> None:
    model = parse(
        PGGAN, L=normal(4, 36), W1=normal(6, 4, 3, 3), b1=normal(6), W2=normal(5, 6, 3, 3),
        b2=normal(5), W3=normal(3, 5, 1, 1),
    )  # fmt: skip
    fused = optimise(differentiate(model, ["z"]).fused)
    counts = count_operators(fused)
    assert not {"Resize", "AveragePool", "Expand", "Pow"} & set(counts)
    strided = [
        node.op_type
        for node in fused.graph.node
        for attribute in node.attribute
        if attribute.name == "strides" and list(attribute.ints) == [2, 2]
    ]
    assert sorted(strided) == ["Conv", "Conv", "ConvTranspose", "ConvTranspose"]


def test_optimise_comes_to_rest_on_gradients(generator: ModelProto) -> None:
    ways = differentiate(generator, ["z"])
    for graph in (ways.forward, ways.backward, ways.fused):
        once = optimise(graph)
        assert optimise(once) == once
