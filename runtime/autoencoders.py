"""The engines and methods of an autoencoder's bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from unblemish.bundle import Bundle
from unblemish.bundle.searches import EnergySettings
from unblemish.errors import BundleError
from unblemish.kernels import Kernels
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.engines import load_engines
from unblemish.runtime.methods.autoencoder import AutoencoderEngine, OneWay
from unblemish.runtime.methods.energy import EnergyMethod
from unblemish.runtime.methods.latent import CodeEngines, LatentMethod
from unblemish.runtime.methods.metric import typical_lengths

if TYPE_CHECKING:
    from unblemish.runtime.device.engines import DeviceEngines


def load_autoencoder(
    bundle: Bundle, backend: Backend, *, gradient: bool = True
) -> AutoencoderEngine:
    """Load the reconstruction, and its gradient if wanted. Raises: BundleError, BackendError."""
    if not gradient:
        return AutoencoderEngine(OneWay(backend.program(str(bundle.graph("reconstruct")))))
    return AutoencoderEngine(
        backend.pair(
            str(bundle.graph("reconstruct_forward")), str(bundle.graph("reconstruct_backward"))
        )
    )


def load_code_engines(bundle: Bundle, backend: Backend) -> CodeEngines:
    """Load decoder, its gradient and encoder. Raises: BundleError, BackendError."""
    manifest = bundle.manifest
    if not {"generator_forward", "generator_backward", "encoder"} <= manifest.graphs.keys():
        raise BundleError(
            f"bundle {manifest.name} holds no decoder apart from its encoder, which "
            "refine='latent' searches with. Export the checkpoint again with: unblemish export "
            "CKPT --latent --out NAME.bundle"
        )
    engines = load_engines(bundle, backend)
    return CodeEngines(engines.generator, engines.encode, manifest.model.latent_size)


def latent_method(
    bundle: Bundle,
    engines: CodeEngines,
    kernels: Kernels,
    schedule: str,
    device: DeviceEngines | None = None,
) -> LatentMethod:
    """The search of the code, on the GPU where `device` is given.

    Raises: BundleError without settings.
    """
    lengths = None if schedule == "paper" else typical_lengths(engines.decoder, engines.size)
    method = LatentMethod(engines, kernels, energy_settings(bundle), schedule, lengths)
    if device is None:
        return method
    from unblemish.runtime.device.rgi import RgiOnDevice

    return replace(method, device=RgiOnDevice(device, bundle))


def energy_method(
    bundle: Bundle,
    engine: AutoencoderEngine,
    kernels: Kernels,
    schedule: str,
    lam: float | None = None,
) -> EnergyMethod:
    """The method of a bundle; `lam` None for its own. Raises: BundleError without settings."""
    p, settings = bundle.manifest.preprocess, energy_settings(bundle)
    if lam is not None:
        settings = settings.model_copy(update={"lam": lam})
    return EnergyMethod(engine, kernels, settings, p.low, p.high, schedule)


def energy_settings(bundle: Bundle) -> EnergySettings:
    """The settings of the search. Raises: BundleError where the bundle has none."""
    settings = bundle.manifest.energy
    if settings is None:
        raise BundleError(
            f"bundle {bundle.manifest.name} has no settings of the energy. Export it again."
        )
    return settings
