"""The engines of a bundle, loaded by role."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import GraphRole, Manifest, Tensor
from unblemish.errors import BundleError
from unblemish.runtime.backends.protocol import Backend, Pair, Program
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.terms import DiscriminatorTerm, FeatureTerm, ImageTerm
from unblemish.runtime.solvers.protocol import Float

# Activations beyond this leave the caches, and a batch then costs more per image than one by one.
_BATCH_BYTES = 8 << 20
_LARGEST_BATCH = 16


@dataclass
class Engines:
    """What a search needs of a bundle.

    Args:
        generator: forward and backward pair.
        encoder: image to latent, or None.
        terms: the further terms that the settings give weight to.
        batch: how many images go through the generator at once.
    """

    generator: GeneratorEngine
    encoder: Program | None
    terms: tuple[ImageTerm, ...]
    batch: int

    def generate(self, z: Float) -> Float:
        """Images of latents (N, n), in batches; a copy."""
        chunks = [
            np.array(self.generator.forward(np.ascontiguousarray(z[i : i + self.batch])))
            for i in range(0, len(z), self.batch)
        ]
        return np.concatenate(chunks)

    def encode(self, images: Float) -> Float:
        """Latents (N, n) of images by the encoder, in batches; a copy."""
        if self.encoder is None:
            raise BundleError("the bundle has no encoder. Export it again with one.")
        entry, out = self.encoder.inputs[0].name, self.encoder.outputs[0].name
        chunks = [
            np.array(self.encoder.run({entry: images[i : i + self.batch]})[out], np.float32)
            for i in range(0, len(images), self.batch)
        ]
        return np.concatenate(chunks).reshape(len(images), -1)


def load_engines(bundle: Bundle, backend: Backend) -> Engines:
    """Load what the bundle's settings ask for.

    Raises: BundleError where a graph is missing or of a shape the runtime cannot drive;
    BackendError where the engine refuses one.
    """
    manifest, settings = bundle.manifest, bundle.manifest.rgi
    pair = backend.pair(
        str(bundle.graph("generator_forward")), str(bundle.graph("generator_backward"))
    )
    latent = tensor_of_role(manifest, "generator_forward", "latent", output=False)
    image = tensor_of_role(manifest, "generator_forward", "image", output=True)
    terms: list[ImageTerm] = []
    if settings.discriminator_weight:
        critic = backend.pair(
            str(bundle.graph("discriminator_forward")), str(bundle.graph("discriminator_backward"))
        )
        terms.append(DiscriminatorTerm(critic, settings.discriminator_weight))
    if settings.feature_weight:
        features = backend.pair(
            str(bundle.graph("features_forward")), str(bundle.graph("features_backward"))
        )
        terms.append(FeatureTerm(features, settings.feature_weight))
    encoder = None
    if "encoder" in manifest.graphs:
        encoder = backend.program(str(bundle.graph("encoder")))
    engine = GeneratorEngine(pair, latent.name, image.name)
    return Engines(engine, encoder, tuple(terms), batch_limit(manifest))


def load_discriminator_features(bundle: Bundle, backend: Backend) -> Pair:
    """A layer of the discriminator, image to features. Raises: BundleError where there is none."""
    if "discriminator_features_forward" not in bundle.manifest.graphs:
        raise BundleError(
            f"bundle {bundle.manifest.name} holds no features of a discriminator, which "
            "refine='anogan' compares. Export it again: the checkpoint of a PGGAN with "
            "--discriminator-layer 4, any generator with --discriminator-onnx FILE "
            "--discriminator-layer TENSOR."
        )
    return backend.pair(
        str(bundle.graph("discriminator_features_forward")),
        str(bundle.graph("discriminator_features_backward")),
    )


def tensor_of_role(manifest: Manifest, graph: GraphRole, role: str, *, output: bool) -> Tensor:
    """The tensor of a role in a graph. Raises: BundleError where the manifest names none."""
    record = manifest.graphs[graph]
    for tensor in record.outputs if output else record.inputs:
        if tensor.role == role:
            return tensor
    raise BundleError(
        f"graph '{graph}' of bundle {manifest.name} names no {role} tensor. Export it again."
    )


def batch_limit(
    manifest: Manifest, budget: int = _BATCH_BYTES, largest: int = _LARGEST_BATCH
) -> int:
    """Images per batch: as many as keep the tensors for the way back within `budget` bytes.

    Raises: BundleError where the graph is fixed to a batch other than 1.
    """
    record = manifest.graphs["generator_forward"]
    fixed = record.inputs[0].shape[0]
    if isinstance(fixed, int):
        if fixed != 1:
            raise BundleError(
                f"the generator of bundle {manifest.name} is fixed to batches of {fixed}; "
                "the runtime needs a symbolic batch, or 1. Export it so."
            )
        return 1
    kept = sum(_bytes_per_item(tensor) for tensor in record.outputs)
    return int(np.clip(budget // max(kept, 1), 1, largest))


def _bytes_per_item(tensor: Tensor) -> int:
    size = int(np.prod([d for d in tensor.shape[1:] if isinstance(d, int)], dtype=np.int64))
    width = np.dtype(tensor.dtype).itemsize if tensor.dtype in np.sctypeDict else 4
    return size * width
