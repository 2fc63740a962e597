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

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ModelError
from unblemish.export.options import ExportOptions
from unblemish.export.source import IMAGE, LATENT, LOGIT, Original, Source

Array = NDArray[Any]
Gradients = dict[str, Array]
Vjp = Callable[[Array, Array], Gradients]
Graphs = Mapping[GraphRole, Path]

BATCH = 3
KINKS = 25.0
# Central differences in float32: rounding / step + kinks crossed within the step.
DIFFERENCE_STEP, DIFFERENCE_TOLERANCE = 1e-2, 5e-2


class Engine:
    """An ONNX graph, as a file or in memory, in ONNX Runtime, run on named arrays."""

    def __init__(self, model: onnx.ModelProto | bytes | Path) -> None:
        import onnxruntime

        if isinstance(model, Path):
            content: bytes | str = str(model)
        else:
            content = model if isinstance(model, bytes) else model.SerializeToString()
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                content, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot load an exported graph: {error}") from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run. Feeds that the graph does not read are ignored."""
        try:
            values = self._session.run(None, {name: feeds[name] for name in self.inputs})
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run an exported graph: {error}") from error
        return dict(zip(self.outputs, values, strict=True))


def relative_error(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, in float64."""
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    return difference / max(norm, 1e-30)


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
    image_of, vjp = _oracle(source)
    expected = image_of(z)
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)
    gate = _Gate(source.high - source.low, options)

    gate.image("image_generator", Engine(graphs["generator"])({LATENT: z})[IMAGE], expected)
    both = Engine(fused)({LATENT: z, f"ct_{IMAGE}": cotangent})
    there, back = _pair(graphs, "generator", {LATENT: z}, {f"ct_{IMAGE}": cotangent})
    gate.image("image_forward", there[IMAGE], expected)
    if vjp is not None:
        reference = vjp(z, cotangent)[LATENT]
        gate.gradient("gradient_fused", both[f"grad_{LATENT}"], reference)
        gate.gradient("gradient_pair", back[f"grad_{LATENT}"], reference)
    else:
        _check_differences(gate, graphs, z, cotangent, back[f"grad_{LATENT}"], rng)
        gate.gradient("gradient_fused", both[f"grad_{LATENT}"], back[f"grad_{LATENT}"])
    _check_company(gate, source, graphs, expected.astype(np.float32), rng)
    if "finetune_forward" in graphs:
        _check_finetune(gate, source, graphs, weights, z, cotangent)
    return gate.figures


class _Gate:
    """Collects figures; raises at the first one above its tolerance (or not a number)."""

    def __init__(self, span: float, options: ExportOptions) -> None:
        self.figures: dict[str, float] = {}
        self._span = span
        self.options = options

    def image(self, name: str, found: Array, expected: Array) -> None:
        self._same_shape(name, found, expected)
        difference = np.abs(found.astype(np.float64) - expected).max() / self._span
        self.note(name, float(difference), self.options.image_tolerance)

    def gradient(self, name: str, found: Array, expected: Array) -> None:
        self._same_shape(name, found, expected)
        errors = [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
        tolerance = self.options.gradient_tolerance
        self.note(name, float(np.min(errors)), tolerance)
        self.note(f"{name}_worst", float(np.max(errors)), KINKS * tolerance)

    def note(self, name: str, value: float, tolerance: float) -> None:
        self.figures[name] = value
        if not value <= tolerance:
            raise ModelError(
                f"export refused: {name} differs from its reference by {value:.3g}, allowed is "
                f"{tolerance:.3g}. Nothing was written. The graph is not the model: please report "
                "it, or raise the tolerance if you know why."
            )

    @staticmethod
    def _same_shape(name: str, found: Array, expected: Array) -> None:
        if found.shape != expected.shape:
            raise ModelError(
                f"export refused: {name} has shape {found.shape}, expected {expected.shape}. "
                "Nothing was written. If the model was exported for a batch of one, export it with "
                "a symbolic batch."
            )


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


_ROLES: dict[str, tuple[GraphRole, GraphRole]] = {
    "generator": ("generator_forward", "generator_backward"),
    "discriminator": ("discriminator_forward", "discriminator_backward"),
    "finetune": ("finetune_forward", "finetune_backward"),
}


def _pair(
    graphs: Graphs,
    stem: str,
    feeds: Mapping[str, Array],
    cotangents: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    there_role, back_role = _ROLES[stem]
    there = Engine(graphs[there_role])(feeds)
    back = Engine(graphs[back_role])({**feeds, **there, **cotangents})
    return there, back


def _oracle(source: Source) -> tuple[Callable[[Array], Array], Vjp | None]:
    """The generator's images, and its vector-Jacobian product where torch is there."""
    network = source.oracles.get("generator")
    if network is not None:
        return lambda z: _torch_image(network, z), lambda z, c: _torch_vjp(network, LATENT, z, c)
    assert source.original is not None
    original = source.original
    if not _has_torch():
        return lambda z: _original_image(original, z), None
    return lambda z: _original_image(original, z), _graph_vjp(source.generator)


def _original_image(original: Original, z: Array) -> Array:
    """Item by item, because the file may be fixed to a batch of one."""
    engine = Engine(original.content)
    items = [engine({original.latent: row.reshape(1, *original.shape)}) for row in z]
    return np.concatenate([item[original.image] for item in items]).astype(np.float64)


def _torch_image(network: Any, x: Array) -> Array:
    import copy

    import torch

    with torch.no_grad():
        result: Array = copy.deepcopy(network).double()(torch.from_numpy(x).double()).numpy()
    return result


def _torch_vjp(network: Any, name: str, x: Array, cotangent: Array) -> Gradients:
    import copy

    import torch

    leaf = torch.from_numpy(x).double().requires_grad_()
    value = copy.deepcopy(network).double()(leaf)
    (gradient,) = torch.autograd.grad((value * torch.from_numpy(cotangent).double()).sum(), leaf)
    return {name: gradient.numpy()}


def _graph_vjp(model: onnx.ModelProto, weights: bool = False) -> Vjp:
    """Gradient of an ONNX graph by torch in float64, of its weights too where asked."""
    import torch

    from unblemish.runtime.backends.torch_graph import TorchGraph

    graph = TorchGraph(model, dtype=torch.float64)

    def vjp(z: Array, cotangent: Array) -> Gradients:
        leaf = torch.from_numpy(z).double().requires_grad_()
        value = graph(**{LATENT: leaf})[IMAGE]
        leaves = {LATENT: leaf, **(graph.weights if weights else {})}
        total = (value * torch.from_numpy(cotangent).double()).sum()
        found = torch.autograd.grad(total, list(leaves.values()))
        return {name: g.numpy() for name, g in zip(leaves, found, strict=True)}

    return vjp


def _check_differences(
    gate: _Gate,
    graphs: Graphs,
    z: Array,
    cotangent: Array,
    gradient: Array,
    rng: np.random.Generator,
) -> None:
    """Central differences of <cotangent, image> along random unit directions."""
    engine = Engine(graphs["generator"])

    def value(shift: Array) -> float:
        image = engine({LATENT: (z + shift).astype(np.float32)})[IMAGE]
        return float((image.astype(np.float64) * cotangent).sum())

    found, expected = [], []
    for _ in range(8):
        direction = rng.standard_normal(z.shape)
        direction *= DIFFERENCE_STEP / np.linalg.norm(direction)
        expected.append((value(direction) - value(-direction)) / 2)
        found.append(float((gradient * direction).sum()))
    error = relative_error(np.array(found), np.array(expected))
    gate.note("gradient_differences", error, DIFFERENCE_TOLERANCE)


def _check_company(
    gate: _Gate,
    source: Source,
    graphs: Graphs,
    image: Array,
    rng: np.random.Generator,
) -> None:
    if "encoder" in graphs:
        found = Engine(graphs["encoder"])({IMAGE: image})[LATENT]
        gate.gradient("encoder", found, _torch_image(source.oracles["encoder"], image))
    if "discriminator_forward" in graphs:
        network = source.oracles["discriminator"]
        expected = _torch_image(network, image)
        cotangent = rng.standard_normal(expected.shape).astype(np.float32)
        there, back = _pair(graphs, "discriminator", {IMAGE: image}, {f"ct_{LOGIT}": cotangent})
        gate.gradient("discriminator", there[LOGIT], expected)
        reference = _torch_vjp(network, IMAGE, image, cotangent)[IMAGE]
        gate.gradient("discriminator_gradient", back[f"grad_{IMAGE}"], reference)
    if "features_forward" in graphs:
        _check_features(gate, graphs, image, rng)


def _check_features(gate: _Gate, graphs: Graphs, image: Array, rng: np.random.Generator) -> None:
    """Central difference of <cotangents, features> along the gradient, where it is largest."""
    forward, backward = Engine(graphs["features_forward"]), Engine(graphs["features_backward"])
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
        "features_differences",
        relative_error(np.array([norm]), np.array([slope])),
        DIFFERENCE_TOLERANCE,
    )


def _check_finetune(
    gate: _Gate,
    source: Source,
    graphs: Graphs,
    weights: Mapping[str, Array],
    z: Array,
    cotangent: Array,
) -> None:
    feeds = {LATENT: z, **weights}
    there, back = _pair(graphs, "finetune", feeds, {f"ct_{IMAGE}": cotangent})
    plain = Engine(graphs["generator"])({LATENT: z})[IMAGE]
    gate.image("image_finetune", there[IMAGE], plain.astype(np.float64))
    if not _has_torch():
        pair = _pair(graphs, "generator", {LATENT: z}, {f"ct_{IMAGE}": cotangent})[1]
        gate.gradient("gradient_finetune", back[f"grad_{LATENT}"], pair[f"grad_{LATENT}"])
        return
    reference = _graph_vjp(source.trainable, weights=True)(z, cotangent)
    gate.gradient("gradient_finetune", back[f"grad_{LATENT}"], reference[LATENT])
    worst = max(relative_error(back[f"grad_{n}"], reference[n]) for n in weights)
    gate.note("gradient_weights", worst, KINKS * gate.options.gradient_tolerance)
