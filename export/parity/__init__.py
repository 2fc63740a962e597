"""The parity gate: what is about to be written against what it came from.

Images are compared as the largest difference over the intensity range, gradients as the relative l2
error per item, on random latents and cotangents. The oracle is the torch network in float64; where
a model came as ONNX, the given file, and for its gradient torch in float64 or, without torch,
central differences along random directions.

Where an activation lies at the kink of a ReLU, float32 may take the other side than float64: on
most latents of a random PGGAN-128 torch's own float32 gradient errs by 1e-4 to 5e-3, on the others
by 2e-6. A wrong graph errs on every latent. So the best of the latents must keep the tolerance, and
the worst `KINKS` times it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from unblemish.export.options import ExportOptions
from unblemish.export.parity.company import check_company, check_differences, check_finetune
from unblemish.export.parity.engine import Array, Engine, Graphs, pair
from unblemish.export.parity.gate import Gate
from unblemish.export.parity.oracles import oracle
from unblemish.export.source import IMAGE, LATENT, Source

BATCH = 3


def check_parity(
    source: Source,
    graphs: Graphs,
    fused: onnx.ModelProto,
    weights: Mapping[str, Array],
    options: ExportOptions,
) -> dict[str, float]:
    """Measure every graph of a bundle, and refuse the bundle where one strays.

    Args:
        graphs: by role, the very files that will be shipped.
        fused: the gradient of the generator in one graph.
        weights: initial weights of the fine-tuning graphs.
    Returns: figure name -> largest difference.
    Raises: ModelError naming the figure, its value and the tolerance.
    """
    rng = np.random.default_rng(options.seed)
    z = rng.standard_normal((BATCH, source.latent)).astype(np.float32)
    image_of, vjp = oracle(source)
    expected = image_of(z)
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)
    gate = Gate(source.high - source.low, options)

    gate.image("image_generator", Engine(graphs["generator"])({LATENT: z})[IMAGE], expected)
    both = Engine(fused)({LATENT: z, f"ct_{IMAGE}": cotangent})
    there, back = pair(graphs, "generator", {LATENT: z}, {f"ct_{IMAGE}": cotangent})
    gate.image("image_forward", there[IMAGE], expected)
    if vjp is not None:
        reference = vjp(z, cotangent)[LATENT]
        gate.gradient("gradient_fused", both[f"grad_{LATENT}"], reference)
        gate.gradient("gradient_pair", back[f"grad_{LATENT}"], reference)
    else:
        check_differences(gate, graphs, z, cotangent, back[f"grad_{LATENT}"], rng)
        gate.gradient("gradient_fused", both[f"grad_{LATENT}"], back[f"grad_{LATENT}"])
    check_company(gate, source, graphs, expected.astype(np.float32), rng)
    if "finetune_forward" in graphs:
        check_finetune(gate, source, graphs, weights, z, cotangent)
    return gate.figures
