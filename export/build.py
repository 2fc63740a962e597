"""From a checkpoint or ONNX file to a bundle, checked before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unblemish.bundle import Bundle, write_bundle
from unblemish.errors import ConfigError, MissingDependencyError
from unblemish.export.options import ExportOptions
from unblemish.files import sha256_of

if TYPE_CHECKING:
    from unblemish.export.energy_plan import EnergyPlan
    from unblemish.export.plan import Plan


def plan(source: Path, options: ExportOptions) -> Plan | EnergyPlan:
    """Read `source` and make every graph, writing nothing; of an autoencoder an `EnergyPlan`.

    Raises: ModelError, UnsupportedOperatorError, ConfigError as the parts do;
    MissingDependencyError where onnx, or for a checkpoint torch, is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("onnx", "onnx", "exporting a model") from error
    from unblemish.export.energy_plan import open_autoencoder, plan_energy
    from unblemish.export.latent_plan import with_latent
    from unblemish.export.plan import plan_bundle
    from unblemish.export.source import open_source

    autoencoder = open_autoencoder(source, options)
    if autoencoder is not None:
        made = plan_energy(autoencoder)
        return with_latent(made, options) if options.latent else made
    if options.latent:
        raise ConfigError(f"{source} holds no autoencoder. Leave out --latent.")
    return plan_bundle(open_source(source, options), options)


def build_bundle(source: Path, out: Path, *, options: ExportOptions | None = None) -> Bundle:
    """Make a bundle of a checkpoint, generator or autoencoder, or an ONNX generator.

    Args:
        source: one of our checkpoints, one in a known layout, or an `.onnx` generator.
        out: folder of the bundle; an old bundle there is replaced, anything else is left alone.
    Returns: the bundle, verified by the parity gate, whose figures are in its manifest.
    Raises: as `plan`; ModelError where parity fails, naming the figure; BundleError where `out`
    cannot be written. In each case nothing is written.
    """
    options = options or ExportOptions()
    made = plan(source, options)
    return write_plan(made, source, out, options)


def write_plan(made: Plan | EnergyPlan, source: Path, out: Path, options: ExportOptions) -> Bundle:
    """Check a plan by the parity gate and write it."""
    from unblemish.export.energy_plan import EnergyPlan
    from unblemish.export.parity import check_parity
    from unblemish.export.parity.reconstruction import check_reconstruction
    from unblemish.export.plan import files_of, graph_file, manifest_of
    from unblemish.export.sharing.shared_files import written

    name = options.name or out.stem
    if not name:
        raise ConfigError("the bundle needs a name: give --name or another --out.")
    files = files_of(made)
    with written(files) as folder:
        graphs = {role: folder / graph_file(role) for role in made.graphs}
        if isinstance(made, EnergyPlan):
            figures = check_reconstruction(made.source, graphs, made.fused, options)
            part = made.latent
            if part is not None:
                found = check_parity(part.source, graphs, part.fused, {}, options)
                figures |= {f"latent_{name}": value for name, value in found.items()}
        else:
            figures = check_parity(made.source, graphs, made.fused, made.weights, options)
        manifest = manifest_of(made, source, sha256_of(source), name, options, figures)
        if options.target == "tensorrt":
            from unblemish.export.engines.prepare import check_files

            check_files(folder, files, manifest)
    return write_bundle(out, files, manifest)
