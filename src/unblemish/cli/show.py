"""`unblemish show`: what a bundle holds, verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unblemish.bundle import Bundle


def show(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Print what a bundle holds, after checking size and SHA-256 of every file."""
    from unblemish.bundle import Bundle

    opened = Bundle.open(bundle, verify=True)
    if json:
        typer.echo(opened.manifest.model_dump_json(indent=2))
        return
    _print(opened)


def _print(opened: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    manifest = opened.manifest
    total = sum(record.bytes for record in manifest.files.values())
    facts = Table(show_header=False, box=None)
    facts.add_column()
    facts.add_column(overflow="fold")
    for label, text in _facts(opened):
        facts.add_row(label, text)
    console.print(facts)
    graphs = Table()
    for heading in ("graph", "inputs", "outputs", "kB", "MFLOP"):
        graphs.add_column(heading, justify="right" if heading in ("kB", "MFLOP") else "left")
    for role, graph in manifest.graphs.items():
        graphs.add_row(
            role, _tensors(graph.inputs), _tensors(graph.outputs),
            f"{manifest.files[graph.file].bytes / 1e3:,.0f}", f"{graph.flops / 1e6:,.1f}",
        )  # fmt: skip
    console.print(graphs)
    console.print(
        f"{len(manifest.files)} files, {total / 1e6:.1f} MB, every SHA-256 as in the manifest"
    )


def _tensors(tensors: Any) -> str:
    """The tensors by name; of each role that has many, a number."""
    lines = []
    for role in dict.fromkeys(t.role for t in tensors):
        same = [t for t in tensors if t.role == role]
        if role in ("kept", "weight") or len(same) > 2:
            lines.append(f"{len(same)} {role}")
        else:
            lines += [f"{t.name} {'x'.join(str(d) for d in t.shape)}" for t in same]
    return "\n".join(lines)


def _method(m: Any) -> str:
    """How it searches, in a line."""
    r, d, e = m.rgi, m.detector, m.energy
    if d is not None:
        return f"{m.method} on {'+'.join(d.layers)}, {d.normals} normals, cells of {d.stride} px"
    if e is not None:
        stop = "at convergence" if e.stop_loss is None else f"below loss {e.stop_loss:.4g}"
        return (
            f"{m.method}: {e.loss}, lambda {e.lam:g}, {e.step} step {e.alpha:g} ({e.optimiser}), "
            f"at most {e.max_steps} steps, ends {stop}, map {e.score}"
            + (f"; of the code: lambda {e.latent_lam:g}" if "encoder" in m.graphs else "")
        )
    return (
        f"{m.method}: {r.loss}, mask {r.mask}, lambda {r.lam:g}, start {r.start}, "
        f"at most {r.max_steps} steps"
        + (f"; AnoGAN: weight {r.anogan_weight:g}" if _has_layer(m) else "")
    )


def _has_layer(m: Any) -> bool:
    return "discriminator_features_forward" in m.graphs


def _facts(opened: Bundle) -> list[tuple[str, str]]:
    m = opened.manifest
    p, c = m.preprocess, m.calibration
    geometry = f" at scale {p.scale:g}, overlap {p.overlap:g}" if p.geometry == "tiles" else ""
    rows = [
        ("bundle", f"{m.name} ({opened.path}), schema {m.schema_version}, by {m.created_by}"),
        ("model", f"{m.model.kind}, latent {m.model.latent_size}, "
                  f"{m.model.parameters:,} parameters, {m.precision}"),
        ("source", f"{m.model.source}, SHA-256 {m.model.source_sha256[:16]}..."),
        ("images", f"{p.width}x{p.height}x{p.channels} in [{p.low:g}, {p.high:g}], "
                   f"{p.geometry}{geometry}" + (f", white {p.white:g}" if p.white else "")),
        ("method", _method(m)),
        ("parity", ", ".join(f"{n} {v:.1e}" for n, v in m.parity.items()
                              if not n.endswith("_worst")) or "not measured"),
    ]  # fmt: skip
    if m.millimetres_per_pixel:
        rows.append(("scale", f"{m.millimetres_per_pixel:g} mm per pixel"))
    rows.append(
        ("calibration", "none; run: unblemish calibrate" if c is None else
         f"{c.normals} normals, pixel threshold {c.pixel_threshold:.4g}, image threshold "
         f"{c.image_threshold:.4g}, false rejects {c.false_reject_rate:g}")
    )  # fmt: skip
    return rows
