"""`unblemish export`: a deployable bundle from a checkpoint or an ONNX generator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.export.energy_plan import EnergyPlan
    from unblemish.export.plan import Plan

DEFAULT_GRADIENT, DEFAULT_IMAGE = 2e-3, 1e-4


def export(
    source: Annotated[
        Path,
        typer.Argument(help="Checkpoint (.pt, .safetensors), .onnx file, or float32 bundle."),
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write, a folder such as part.bundle.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle [that of --out].")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="rgi, or energy: generator and encoder together as an autoencoder [as trained]."
        ),
    ] = None,
    encoder: Annotated[
        bool, typer.Option(help="Include the encoder, which gives the start of a search.")
    ] = True,
    discriminator: Annotated[
        bool, typer.Option("--discriminator", help="Include the discriminator as a penalty.")
    ] = False,
    discriminator_layer: Annotated[
        str | None,
        typer.Option(
            help="Include this layer of the discriminator, for --refine anogan: of a PGGAN its "
            "side in pixels (4 is the last), of an ONNX one the name of a tensor."
        ),
    ] = None,
    discriminator_onnx: Annotated[
        Path | None,
        typer.Option(help="ONNX discriminator for --refine anogan, where SOURCE holds none."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="ONNX feature extractor for a perceptual loss, image in, features out."),
    ] = None,
    feature_weight: Annotated[float, typer.Option(help="Weight of the perceptual loss.")] = 1.0,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Include weight gradients: R-RGI without torch.")
    ] = False,
    latent: Annotated[
        bool,
        typer.Option(
            "--latent",
            help="Autoencoders: include decoder and encoder apart, for a search of the code.",
        ),
    ] = False,
    latent_input: Annotated[
        str | None, typer.Option(help="ONNX: name of the latent input.")
    ] = None,
    image_output: Annotated[
        str | None, typer.Option(help="ONNX: name of the image output.")
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option("--range", help="ONNX: model intensity of black and white, as --range=-1,1."),
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help="stretch, letterbox or tiles [as in training].")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="tiles: model pixels per native pixel [as in training].")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="tiles: share of a tile's side [0.25].")
    ] = None,
    image_tolerance: Annotated[
        float, typer.Option(help="Largest image difference allowed, share of the range.")
    ] = DEFAULT_IMAGE,
    gradient_tolerance: Annotated[
        float, typer.Option(help="Relative gradient error allowed.")
    ] = DEFAULT_GRADIENT,
    precision: Annotated[
        str, typer.Option(help="Of the heavy operators: fp32, fp16, bf16 or int8.")
    ] = "fp32",
    normals: Annotated[
        Path | None,
        typer.Option(help="Normal images: what the precision is measured on, int8 ranges."),
    ] = None,
    quantiser: Annotated[
        str,
        typer.Option(help="Of int8: onnxruntime, or modelopt (NVIDIA's, if it is installed)."),
    ] = "onnxruntime",
    target: Annotated[
        str | None,
        typer.Option(
            help="tensorrt: refuse what TensorRT would refuse, and build engines if it is here."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built, and write nothing.")
    ] = False,
) -> None:
    """Export a generator or autoencoder with its gradients; a graph that strays is refused.

    With --precision fp16, bf16 or int8 the bundle is also held against float32 on normal images
    with synthetic defects; SOURCE may then be a bundle of any method that exists already.
    """
    from unblemish.cli.export_precision import Precision, convert_bundle, in_precision
    from unblemish.export.build import plan, write_plan
    from unblemish.export.options import ExportOptions, parse_range

    # TensorRT quantises no biases.
    asked = Precision(precision, normals, biases=target != "tensorrt", quantiser=quantiser)
    if source.is_dir():
        _build(convert_bundle(source, out, asked), target)
        return

    options = ExportOptions(
        name=name, method=method, encoder=encoder, discriminator=discriminator, finetune=finetune,
        latent=latent,
        discriminator_layer=discriminator_layer, discriminator_onnx=discriminator_onnx,
        features=features, feature_weight=feature_weight,
        latent_input=latent_input, image_output=image_output,
        value_range=None if value_range is None else parse_range(value_range),
        geometry=geometry, scale=scale, overlap=overlap,
        image_tolerance=image_tolerance, gradient_tolerance=gradient_tolerance, target=target,
    )  # fmt: skip
    made = plan(source, options)
    _print_plan(made, out)
    if dry_run:
        typer.echo("dry run: nothing was written")
        return
    write = partial(write_plan, made, source, options=options)
    bundle = in_precision(write, out, asked)
    _print_parity(bundle)
    _build(bundle, target)


def _build(bundle: Bundle, target: str | None) -> None:
    """Build engines for the target on the device, if one is asked for and this is it.

    Raises: UnsupportedOperatorError where the target would refuse a graph in the bundle's precision
    (those of float32 were held against it before they were written).
    """
    if target is None:
        return
    from unblemish.cli.build_engines import build_or_say
    from unblemish.export.engines.prepare import check_bundle

    if bundle.manifest.precision != "fp32":
        check_bundle(bundle)
    build_or_say(bundle)


def _print_plan(made: Plan | EnergyPlan, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from unblemish.export.plan import files_of

    source = made.source
    console = Console()
    console.print(
        f"{out}: {source.kind}, latent {source.latent}, "
        f"{source.width}x{source.height}x{source.channels} in [{source.low:g}, {source.high:g}], "
        f"{source.parameters:,} parameters",
        markup=False,
    )
    table = Table()
    for heading in ("graph", "nodes", "MB", "MFLOP"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for role, model in made.graphs.items():
        table.add_row(
            role, str(len(model.graph.node)), f"{model.ByteSize() / 1e6:.1f}",
            f"{made.costs[role].flops / 1e6:,.1f}",
        )  # fmt: skip
    console.print(table)
    size = sum(map(len, files_of(made).values()))
    console.print(f"{size / 1e6:.1f} MB in all: the bundle holds weights that graphs share once")
    if made.weights:
        size = sum(array.nbytes for array in made.weights.values())
        console.print(f"{len(made.weights)} free weights, {size / 1e6:.1f} MB")
    console.print(
        f"one step (value and gradient): {made.step_flops() / 1e6:,.1f} MFLOP; "
        f"{made.kept / 1e6:.2f} MB kept between forward and backward per image"
    )


def _print_parity(bundle: Bundle) -> None:
    figures = ", ".join(
        f"{n} {value:.1e}"
        for n, value in bundle.manifest.parity.items()
        if not n.endswith("_worst")
    )
    typer.echo(f"parity: {figures}")
    typer.echo(f"wrote {bundle.path}; next: unblemish calibrate {bundle.path} --normals DIR")
