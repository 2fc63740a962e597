"""Decoder and encoder of an autoencoder apart, as a generator, for the search of the code.

That search, over z instead of the image, is what the energy projection is compared with.
Source: seed 002, eq. 6.
"""

from __future__ import annotations

from dataclasses import replace

from unblemish.export.energy_plan import AutoencoderSource, EnergyPlan
from unblemish.export.options import ExportOptions
from unblemish.export.plan import plan_bundle
from unblemish.export.source import IMAGE, LATENT, Source


def with_latent(plan: EnergyPlan, options: ExportOptions) -> EnergyPlan:
    """The plan with the graphs of a generator: code -> image, its gradient, image -> code."""
    part = plan_bundle(latent_source(plan.source), options)
    return replace(
        plan, graphs={**plan.graphs, **part.graphs}, costs={**plan.costs, **part.costs}, latent=part
    )


def latent_source(source: AutoencoderSource) -> Source:
    """Decoder and encoder, mean path, as a generator and its encoder."""
    from unblemish.export.from_torch import to_onnx
    from unblemish.export.models.loaded import MeanOf

    network = source.oracle.network
    decoder, encoder = MeanOf(network.decoder).eval(), MeanOf(network.encoder).eval()
    picture = (source.channels, source.height, source.width)
    generator = to_onnx(decoder, (source.latent,), input_name=LATENT, output_name=IMAGE)
    return Source(
        source.kind, generator, source.latent, source.channels, source.height, source.width,
        source.low, source.high, sum(p.numel() for p in decoder.parameters()), generator,
        encoder=to_onnx(encoder, picture, input_name=IMAGE, output_name=LATENT),
        oracles={"generator": decoder, "encoder": encoder},
    )  # fmt: skip
