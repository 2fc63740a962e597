"""The parity gate of autoencoders: reconstructions and gradients against torch in float64."""

from __future__ import annotations

import copy

import numpy as np
import onnx

from unblemish.export.energy_plan import AutoencoderSource
from unblemish.export.options import ExportOptions
from unblemish.export.parity.company import check_differences
from unblemish.export.parity.engine import Array, Engine, Graphs, pair
from unblemish.export.parity.gate import Gate
from unblemish.export.parity.oracles import original_image
from unblemish.export.source import IMAGE

BATCH = 3


def check_reconstruction(
    source: AutoencoderSource, graphs: Graphs, fused: onnx.ModelProto, options: ExportOptions
) -> dict[str, float]:
    """Measure every graph of an autoencoder's bundle, and refuse the bundle where one strays.

    The images are noise of all scales; every output is given a random cotangent. Of an ONNX file
    the reference is the file itself, and without torch that of its gradient central differences.

    Args:
        graphs: by role, the very files that will be shipped.
        fused: the gradient in one graph.
    Returns: figure name -> largest difference: of images as a share of the range, of moments and
        gradients relative, l2.
    Raises: ModelError naming the figure, its value and the tolerance.
    """
    rng = np.random.default_rng(options.seed)
    image = _images(source, rng)
    expected = _by_file(source, image) or _by_torch(source, image)
    cotangents = {
        f"ct_{name}": rng.standard_normal(value.shape).astype(np.float32)
        for name, value in expected.items()
    }
    gate = Gate(source.high - source.low, options)
    plain = Engine(graphs["reconstruct"])({IMAGE: image})
    there, back = pair(graphs, "reconstruct", {IMAGE: image}, cotangents)
    for title, found in (("reconstruct", plain), ("forward", there)):
        for name, value in expected.items():
            if name == "reconstruction":
                gate.image(f"image_{title}", found[name], value)
            else:
                gate.gradient(f"{name}_{title}", found[name], value)
    both = Engine(fused)({IMAGE: image, **cotangents})
    reference = back[f"grad_{IMAGE}"]
    if source.oracle is None:
        (cotangent,) = cotangents.values()
        names = (IMAGE, *source.outputs)
        check_differences(gate, graphs, image, cotangent, reference, rng, "reconstruct", names)
    else:
        reference = _slope(source, image, cotangents)
        gate.gradient("gradient_pair", back[f"grad_{IMAGE}"], reference)
    gate.gradient("gradient_fused", both[f"grad_{IMAGE}"], reference)
    return gate.figures


def _images(source: AutoencoderSource, rng: np.random.Generator) -> Array:
    """(BATCH, C, H, W) float32, model intensities: random blocks from the side to a pixel."""
    shape = (BATCH, source.channels, source.height, source.width)
    total = np.zeros(shape)
    block, count = source.height, 0
    while block:
        rows = -(-source.height // block)
        grid = rng.random((*shape[:2], rows, -(-source.width // block)))
        spread = grid.repeat(block, axis=2).repeat(block, axis=3)
        total += spread[:, :, : source.height, : source.width]
        block, count = block // 4, count + 1
    unit = total / count
    return (source.low + (source.high - source.low) * unit).astype(np.float32)


def _by_file(source: AutoencoderSource, image: Array) -> dict[str, Array] | None:
    """What the ONNX file itself makes of the images, where there is one."""
    if source.original is None:
        return None
    return {source.outputs[0]: original_image(source.original, image)}


def _by_torch(source: AutoencoderSource, image: Array) -> dict[str, Array]:
    import torch

    with torch.no_grad():
        values = copy.deepcopy(source.oracle).double()(torch.from_numpy(image).double())
    return {name: v.numpy() for name, v in zip(source.outputs, values, strict=True)}


def _slope(source: AutoencoderSource, image: Array, cotangents: dict[str, Array]) -> Array:
    import torch

    leaf = torch.from_numpy(image).double().requires_grad_()
    values = copy.deepcopy(source.oracle).double()(leaf)
    weights = [torch.from_numpy(cotangents[f"ct_{name}"]).double() for name in source.outputs]
    (gradient,) = torch.autograd.grad(values, leaf, weights)
    result: Array = gradient.numpy()
    return result
