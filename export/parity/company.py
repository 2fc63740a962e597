"""Checks of the graphs beside the generator, and of its gradient where there is no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unblemish.bundle.manifest import GraphRole
from unblemish.export.parity.engine import Array, Engine, Graphs, pair, relative_error
from unblemish.export.parity.gate import KINKS, Gate
from unblemish.export.parity.oracles import graph_vjp, has_torch, torch_image, torch_vjp
from unblemish.export.source import FEATURES, IMAGE, LATENT, LOGIT, Source

# Central differences in float32: rounding / step + kinks crossed within the step.
DIFFERENCE_STEP, DIFFERENCE_TOLERANCE = 1e-2, 5e-2


def check_differences(
    gate: Gate,
    graphs: Graphs,
    z: Array,
    cotangent: Array,
    gradient: Array,
    rng: np.random.Generator,
    role: GraphRole = "generator",
    names: tuple[str, ...] = (LATENT, IMAGE),
) -> None:
    """Central differences of <cotangent, output> along random unit directions of the input z.

    Args:
        names: of input and output of the graph.
    """
    engine = Engine(graphs[role])

    def value(shift: Array) -> float:
        found = engine({names[0]: (z + shift).astype(np.float32)})[names[1]]
        return float((found.astype(np.float64) * cotangent).sum())

    found, expected = [], []
    for _ in range(8):
        direction = rng.standard_normal(z.shape)
        direction *= DIFFERENCE_STEP / np.linalg.norm(direction)
        expected.append((value(direction) - value(-direction)) / 2)
        found.append(float((gradient * direction).sum()))
    error = relative_error(np.array(found), np.array(expected))
    gate.note("gradient_differences", error, DIFFERENCE_TOLERANCE)


def check_company(
    gate: Gate,
    source: Source,
    graphs: Graphs,
    image: Array,
    rng: np.random.Generator,
) -> None:
    """The encoder, the discriminator, its layer and the features, where a bundle has them."""
    if "encoder" in graphs:
        found = Engine(graphs["encoder"])({IMAGE: image})[LATENT]
        gate.gradient("encoder", found, torch_image(source.oracles["encoder"], image))
    if "discriminator_forward" in graphs:
        _check_torch(gate, source, graphs, "discriminator", LOGIT, image, rng)
    if "discriminator_features" in source.oracles:
        _check_torch(gate, source, graphs, "discriminator_features", FEATURES, image, rng)
    elif "discriminator_features_forward" in graphs:
        check_features(gate, graphs, "discriminator_features", image, rng)
    if "features_forward" in graphs:
        check_features(gate, graphs, "features", image, rng)


def _check_torch(
    gate: Gate,
    source: Source,
    graphs: Graphs,
    stem: str,
    output: str,
    image: Array,
    rng: np.random.Generator,
) -> None:
    """Output and gradient of a pair by the torch network behind it."""
    network = source.oracles[stem]
    expected = torch_image(network, image)
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)
    there, back = pair(graphs, stem, {IMAGE: image}, {f"ct_{output}": cotangent})
    gate.gradient(stem, there[output], expected)
    reference = torch_vjp(network, IMAGE, image, cotangent)[IMAGE]
    gate.gradient(f"{stem}_gradient", back[f"grad_{IMAGE}"], reference)


def check_features(
    gate: Gate, graphs: Graphs, stem: str, image: Array, rng: np.random.Generator
) -> None:
    """Central difference of <cotangents, features> along the gradient, where it is largest."""
    forward, backward = Engine(graphs[f"{stem}_forward"]), Engine(graphs[f"{stem}_backward"])  # type: ignore[index]
    there = forward({IMAGE: image})
    cotangents = {
        name: rng.standard_normal(there[name[3:]].shape).astype(np.float32)
        for name in backward.inputs
        if name.startswith("ct_")
    }
    gradient = backward({IMAGE: image, **there, **cotangents})[f"grad_{IMAGE}"].astype(np.float64)

    def value(shift: Array) -> float:
        found = forward({IMAGE: (image + shift).astype(np.float32)})
        return float(
            sum((found[n[3:]].astype(np.float64) * c).sum() for n, c in cotangents.items())
        )

    norm = float(np.linalg.norm(gradient))
    # A root mean square change of a pixel by DIFFERENCE_STEP / 10: few kinks are crossed.
    step = DIFFERENCE_STEP / 10 * np.sqrt(image.size)
    shift = step * gradient / max(norm, 1e-30)
    slope = (value(shift) - value(-shift)) / (2 * step)
    gate.note(
        f"{stem}_differences",
        relative_error(np.array([norm]), np.array([slope])),
        DIFFERENCE_TOLERANCE,
    )


def check_finetune(
    gate: Gate,
    source: Source,
    graphs: Graphs,
    weights: Mapping[str, Array],
    z: Array,
    cotangent: Array,
) -> None:
    """Image and gradients of the graphs with free weights; weight gradients where torch is."""
    feeds = {LATENT: z, **weights}
    there, back = pair(graphs, "finetune", feeds, {f"ct_{IMAGE}": cotangent})
    plain = Engine(graphs["generator"])({LATENT: z})[IMAGE]
    gate.image("image_finetune", there[IMAGE], plain.astype(np.float64))
    if not has_torch():
        frozen = pair(graphs, "generator", {LATENT: z}, {f"ct_{IMAGE}": cotangent})[1]
        gate.gradient("gradient_finetune", back[f"grad_{LATENT}"], frozen[f"grad_{LATENT}"])
        return
    reference = graph_vjp(source.trainable, weights=True)(z, cotangent)
    gate.gradient("gradient_finetune", back[f"grad_{LATENT}"], reference[LATENT])
    worst = max(relative_error(back[f"grad_{n}"], reference[n]) for n in weights)
    gate.note("gradient_weights", worst, KINKS * gate.options.gradient_tolerance)
