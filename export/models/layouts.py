"""Known checkpoint layouts of other projects, told apart by parameter names, sized by shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unblemish.errors import ModelError
from unblemish.export.models.loaded import LoadedModel, MeanOf, settle

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One foreign layout: `matches` looks at parameter names, `load` builds the networks."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    load: Callable[[Mapping[str, Any]], LoadedModel]


def load_known(content: Mapping[str, Any], source: str) -> LoadedModel:
    """Build the model of the first layout that fits.

    Args:
        content: what the file held: a state dict, or one nested under wrapper names.
    Raises: ModelError naming the known layouts where none fits, or the first tensor that does not.
    """
    for layout in LAYOUTS:
        if layout.matches(content):
            return layout.load(content)
    known = "; ".join(layout.name for layout in LAYOUTS)
    found = ", ".join(list(content)[:4]) or "nothing"
    raise ModelError(
        f"{source}: unknown checkpoint layout (it begins with: {found}). Known are: unblemish's "
        f"own checkpoints; {known}. Save the network's state_dict in one of these layouts, or "
        "export it to ONNX and use the .onnx file."
    )


def plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo DataParallel: strip a `module.` that every name begins with."""
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def fill(network: nn.Module, state: State, source: str) -> None:
    """Load `state` strictly. Raises: ModelError naming missing, unexpected or misshapen tensors."""
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    foreign = sorted(state.keys() - own.keys())
    if missing or foreign:
        raise ModelError(
            f"{source}: the checkpoint does not fit the {type(network).__name__}: "
            f"missing {_few(missing)}; not expected {_few(foreign)}. "
            "It is truncated or of another architecture."
        )
    for name, tensor in own.items():
        if tuple(state[name].shape) != tuple(tensor.shape):
            raise ModelError(
                f"{source}: tensor '{name}' has shape {tuple(state[name].shape)}, expected "
                f"{tuple(tensor.shape)}. The checkpoint is of another architecture or settings."
            )
        if not bool(state[name].isfinite().all()):
            raise ModelError(
                f"{source}: tensor '{name}' holds NaN or infinity. Use an earlier checkpoint."
            )
    network.load_state_dict(state)


def _few(names: list[str]) -> str:
    return (", ".join(names[:3]) + (", ..." if len(names) > 3 else "")) or "nothing"


def shape_of(state: Mapping[str, Any], name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor a layout is recognised by. Raises: ModelError where absent or misshapen."""
    tensor = state.get(name)
    if not isinstance(tensor, Tensor) or tensor.dim() != rank:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else "nothing"
        raise ModelError(f"tensor '{name}' of rank {rank} was expected, found {found}.")
    return tuple(tensor.shape)


def _is_burgess(content: Mapping[str, Any]) -> bool:
    names = plain_names(content)
    return "decoder.convT3.weight" in names and "decoder.lin1.weight" in names


def _load_burgess(content: Mapping[str, Any]) -> LoadedModel:
    from unblemish.export.models.burgess import SIZE, BurgessVae

    state = plain_names(content)
    hidden, latent = shape_of(state, "decoder.lin1.weight", 2)
    width, channels = shape_of(state, "decoder.convT3.weight", 4)[:2]
    network = BurgessVae(channels, latent, width, hidden)
    fill(network, state, "Burgess VAE")
    settle(network)
    return LoadedModel(
        "burgess", network.decoder, latent, SIZE, channels, 0.0, 1.0, MeanOf(network.encoder)
    )


GENERATOR_NAMES = ("avgG", "netG")  # the moving average gives the better images


def _generator_part(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in GENERATOR_NAMES:
        if isinstance(content.get(name), Mapping):
            return plain_names(content[name])
    return plain_names(content)


def _is_zoo_pggan(content: Mapping[str, Any]) -> bool:
    names = _generator_part(content)
    return any(name.startswith("formatLayer.") for name in names) and any(
        name.startswith("toRGBLayers.") for name in names
    )


def _load_zoo_pggan(content: Mapping[str, Any]) -> LoadedModel:
    from unblemish.export.models.pggan import Discriminator, Generator, PgganSettings

    config = vars(content["config"]) if hasattr(content.get("config"), "__dict__") else {}
    _refuse_variants(config)
    state = _with_module(_generator_part(content))
    first, latent = shape_of(state, "formatLayer.module.weight", 2)
    scales = sum(name.startswith("toRGBLayers.") and name.endswith("weight") for name in state)
    heights = [shape_of(state, f"toRGBLayers.{k}.module.weight", 4) for k in range(scales)]
    channels = heights[0][0]
    settings = PgganSettings(2 << scales, channels, latent, tuple(shape[1] for shape in heights))
    if first != 16 * settings.widths[0]:
        raise ModelError(
            f"PGGAN: the first layer makes {first} values, expected {16 * settings.widths[0]} for "
            "4x4 pixels. The checkpoint is of another architecture."
        )
    generator = Generator(settings)
    fill(generator, state, "PGGAN generator")
    discriminator: Discriminator | None = None
    if isinstance(content.get("netD"), Mapping):
        other = _with_module(plain_names(content["netD"]))
        inputs = shape_of(other, "groupScaleZero.0.module.weight", 4)[1]
        outputs = shape_of(other, "decisionLayer.module.weight", 2)[0]
        discriminator = Discriminator(
            settings, minibatch=inputs == settings.widths[0] + 1, outputs=outputs
        )
        fill(discriminator, other, "PGGAN discriminator")
    return pggan_model(generator, discriminator)


def pggan_model(generator: Any, discriminator: Any = None) -> LoadedModel:
    """`LoadedModel` of a trained generator and, where there is one, its discriminator."""
    settings = generator.settings
    return LoadedModel(
        "pggan",
        settle(generator.folded()),
        settings.latent,
        settings.size,
        settings.channels,
        -1.0,
        1.0,
        discriminator=settle(discriminator.folded()) if discriminator is not None else None,
        trainable=settle(generator),
    )


def _with_module(state: Mapping[str, Any]) -> dict[str, Any]:
    """Older files leave out the `.module` between a layer and its weight."""
    renamed = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        renamed[name if layer.endswith(".module") else f"{layer}.module.{leaf}"] = value
    return renamed


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Name the settings of the training that our network does not compute."""
    expected = {"equalizedlR": True, "leakyReluLeak": 0.2, "perChannelNormalization": True}
    for name, value in expected.items():
        found = config.get(name, value)
        different = not math.isclose(float(found), float(value))
        if different:
            raise ModelError(
                f"PGGAN checkpoint trained with {name}={found}; only {name}={value} is supported. "
                "Export that network to ONNX and use the .onnx file."
            )
    if float(config.get("alpha", 0.0) or 0.0) > 0.0:
        raise ModelError(
            "PGGAN checkpoint was saved while its last scale was fading in. "
            "Use one saved at the end of a scale."
        )


LAYOUTS = (
    Layout(
        "pytorch_GAN_zoo PGAN (formatLayer, groupScale0, scaleLayers, toRGBLayers; plain or under "
        "avgG/netG, with or without netD)",
        _is_zoo_pggan,
        _load_zoo_pggan,
    ),
    Layout(
        "Burgess VAE of 64 pixels (encoder.conv1 ..., decoder.lin1 ... decoder.convT3)",
        _is_burgess,
        _load_burgess,
    ),
)
