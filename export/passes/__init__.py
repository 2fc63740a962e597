"""Graph rewrites that make exported graphs fast: one per file, each `ModelProto -> PassResult`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from unblemish.export.passes.drop_dead_nodes import drop_dead_nodes
from unblemish.export.passes.drop_expands import drop_expands
from unblemish.export.passes.drop_identities import drop_identities
from unblemish.export.passes.expand_powers import expand_powers
from unblemish.export.passes.fold_constants import fold_constants
from unblemish.export.passes.fold_offsets import fold_offsets
from unblemish.export.passes.fold_scales import fold_scales
from unblemish.export.passes.fuse_batch_norm import fuse_batch_norm
from unblemish.export.passes.graph_view import count_operators
from unblemish.export.passes.merge_conv_pool import merge_conv_pool
from unblemish.export.passes.merge_terms import merge_terms
from unblemish.export.passes.merge_transposes import merge_transposes
from unblemish.export.passes.merge_upsample_conv import merge_upsample_conv
from unblemish.export.passes.order_products import order_products
from unblemish.export.passes.result import Pass, PassResult
from unblemish.export.passes.share_subexpressions import share_subexpressions
from unblemish.export.passes.split_conv_transpose import split_conv_transpose
from unblemish.export.passes.turn_channel_means import turn_channel_means
from unblemish.export.passes.turn_conv_transpose import turn_conv_transpose
from unblemish.export.passes.turn_divisions import turn_divisions

__all__ = [
    "DEFAULT_PASSES",
    "ONNXRUNTIME_PASSES",
    "Pass",
    "PassReport",
    "PassResult",
    "count_operators",
    "drop_dead_nodes",
    "drop_expands",
    "drop_identities",
    "expand_powers",
    "fold_constants",
    "fold_offsets",
    "fold_scales",
    "fuse_batch_norm",
    "merge_conv_pool",
    "merge_terms",
    "merge_transposes",
    "merge_upsample_conv",
    "optimise",
    "optimise_with_report",
    "order_products",
    "share_subexpressions",
    "split_conv_transpose",
    "turn_channel_means",
    "turn_conv_transpose",
    "turn_divisions",
]

DEFAULT_PASSES: tuple[Pass, ...] = (
    drop_dead_nodes,
    fold_constants,
    drop_identities,
    merge_transposes,
    expand_powers,
    turn_divisions,
    fuse_batch_norm,
    fold_scales,
    fold_offsets,
    turn_conv_transpose,
    merge_upsample_conv,
    merge_conv_pool,
    drop_expands,
    merge_terms,
    order_products,
    share_subexpressions,
)
# What ONNX Runtime's CPU kernels like better, measured in benchmarks/pggan_step.py. For final
# graphs: the gradient of a split ConvTranspose is no longer one strided Conv.
ONNXRUNTIME_PASSES: tuple[Pass, ...] = (*DEFAULT_PASSES, turn_channel_means, split_conv_transpose)
MAX_ROUNDS = 5


@dataclass
class PassReport:
    """What `optimise` did: rewrites per pass, last refusals, node counts before and after."""

    changed: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """A few lines for a person: passes that did something, and why others did not."""
        lines = [f"{sum(self.before.values())} nodes -> {sum(self.after.values())} nodes"]
        lines += [f"  {name}: {count} rewritten" for name, count in self.changed.items() if count]
        for name, reasons in self.reasons.items():
            lines += [f"  {name}: left {reason}" for reason in reasons]
        return "\n".join(lines)


def optimise(model: ModelProto, passes: Sequence[Pass] | None = None) -> ModelProto:
    """Run rewrites until none applies any more, and return a new model with the same interface.

    Args:
        model: any ONNX model; run it on the forward model before differentiation, and on the graphs
            that differentiation returns.
        passes: the rewrites and their order, `DEFAULT_PASSES` where None.
    """
    return optimise_with_report(model, passes)[0]


def optimise_with_report(
    model: ModelProto, passes: Sequence[Pass] | None = None
) -> tuple[ModelProto, PassReport]:
    """As `optimise`, with an account of what was and was not rewritten."""
    report = PassReport(before=count_operators(model))
    for _ in range(MAX_ROUNDS):
        rewritten = 0
        for rewrite in DEFAULT_PASSES if passes is None else passes:
            result = rewrite(model)
            model, rewritten = result.model, rewritten + result.changed
            _record(report, rewrite, result)
        if not rewritten:
            break
    report.after = count_operators(model)
    return model, report


def _record(report: PassReport, rewrite: Pass, result: PassResult) -> None:
    name = getattr(rewrite, "__name__", None) or getattr(rewrite, "func", rewrite).__name__
    report.changed[name] = report.changed.get(name, 0) + result.changed
    report.reasons[name] = result.reasons
