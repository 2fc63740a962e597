r"""Compare `differentiate` with onnxsim's graph_grad and with torch: coverage, nodes, speed.

    python benchmarks/gradient_coverage.py [--rounds N] [--threads N] [--no-compile] [--json F] \
        > docs/gradient-coverage.md

Coverage: operators with a gradient rule, of those listed below and in all. Three graphs at batch
1: a VAE decoder of transposed convolutions, a residual network of convolutions and batch norms, and
a progressive-growing generator. A step is the output and the gradient with respect to the input for
a given cotangent; candidates take turns within every round, and a ratio is the median over the
rounds of the ratio within a round. onnxsim is needed only here: pip install onnxsim==0.8.1.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from unblemish.export import differentiate
from unblemish.export.from_torch import to_onnx
from unblemish.export.gradient.rule import RULES
from unblemish.export.models.burgess import Decoder
from unblemish.export.models.pggan import Generator, PgganSettings
from unblemish.export.passes import ONNXRUNTIME_PASSES, optimise

Array = NDArray[np.float32]
Step = Callable[[], Array]

LISTED = """
Add Sub Mul Div Neg Abs Pow Sqrt Reciprocal Exp Log Erf Sin Cos Tanh Sigmoid HardSigmoid HardSwish
Relu LeakyRelu PRelu Elu Selu Celu Gelu Mish Softplus Softsign ThresholdedRelu Clip Min Max Where
Cast Identity Dropout Conv ConvTranspose MatMul Gemm Einsum MaxPool AveragePool GlobalAveragePool
GlobalMaxPool LpPool BatchNormalization InstanceNormalization LayerNormalization
GroupNormalization LpNormalization ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2
ReduceSumSquare ReduceLogSumExp ReduceProd Softmax LogSoftmax Resize Concat Split Slice Gather
GatherND GatherElements Pad Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile DepthToSpace
SpaceToDepth TopK CumSum
"""
WANTED = LISTED.split()
"""What generators and feature networks are made of, as exporters write it."""


class Residual(nn.Module):
    """Six residual blocks of two convolutions with batch norm."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(self._block(width) for _ in range(6))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    @staticmethod
    def _block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 3, H, W). Returns the same shape."""
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        last: Tensor = self.last(x)
        return last


@dataclass
class Candidate:
    """One way to do the step."""

    name: str
    nodes: int | None
    step: Step | None
    reason: str = ""
    error: float = 0.0
    seconds: list[float] = field(default_factory=list)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Name -> network in inference mode, shape of its input without the batch."""
    torch.manual_seed(0)
    pggan = Generator(PgganSettings(size=64, latent=256))
    return {
        "VAE decoder, 64 px": (Decoder(3, 32, 32, 256).eval(), (32,)),
        "residual network, 32 px": (Residual().eval(), (3, 32, 32)),
        "PGGAN generator, 64 px": (pggan.folded().eval(), (256,)),
    }


def static_model(network: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export at batch 1, which the other tool needs to be static."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    model = to_onnx(network, shape, input_name="x", output_name="y")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return model


def onnxsim_fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The fused graph by onnxsim. Raises: whatever it raises for what it does not support."""
    from onnxsim import graph_grad, qat_graph

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Any] = {t.name: list(t.dims) for t in inferred.initializer}
    for info in (*inferred.input, *inferred.output, *inferred.value_info):
        shapes[info.name] = [d.dim_value for d in info.type.tensor_type.shape.dim]
    builder = qat_graph.GraphBuilder(prefix="g_")
    builder.nodes = list(model.graph.node)
    builder.initializer = list(model.graph.initializer)
    grads = graph_grad.build_backward(
        builder,
        nodes=list(model.graph.node),
        shapes=shapes,
        grad_outputs={"y": "ct_y"},
        targets=["x"],
    )
    outputs = {"y": shapes["y"], grads["x"]: shapes["x"]}
    graph = helper.make_graph(
        builder.nodes,
        "fused",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[of])
            for name, of in (("x", "x"), ("ct_y", "y"))
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        initializer=builder.initializer,
    )
    opsets = [helper.make_opsetid("", 20), *_function_opsets(builder)]
    fused = helper.make_model(graph, opset_imports=opsets, functions=builder.functions)
    fused.ir_version = 10
    return onnx.inliner.inline_local_functions(fused) if builder.functions else fused


def _function_opsets(builder: Any) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid(d, 1) for d in sorted({f.domain for f in builder.functions})]


def engine_step(fused: onnx.ModelProto, feeds: dict[str, Array], threads: int) -> Step:
    """One run of a fused graph in ONNX Runtime; returns the gradient."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(fused.SerializeToString(), options)
    names = [o.name for o in fused.graph.output]

    def step() -> Array:
        gradient: Array = session.run(names, feeds)[1]
        return gradient

    return step


def torch_step(network: nn.Module, feeds: dict[str, Array], *, compiled: bool) -> Step:
    """Forward and backward in torch, eager or compiled."""
    function: Any = torch.compile(network) if compiled else network
    x = torch.from_numpy(feeds["x"]).requires_grad_()
    cotangent = torch.from_numpy(feeds["ct_y"])

    def step() -> Array:
        (gradient,) = torch.autograd.grad(function(x), x, cotangent)
        return gradient.numpy()

    return step


def candidates(
    network: nn.Module, model: onnx.ModelProto, feeds: dict[str, Array], options: Any
) -> list[Candidate]:
    """Every way of doing the step, those that refuse with their reason."""
    plain = differentiate(model, ["x"], ["y"]).fused
    quick = optimise(plain, ONNXRUNTIME_PASSES)
    found = [
        Candidate(name, len(graph.graph.node), engine_step(graph, feeds, options.threads))
        for name, graph in (("differentiate", plain), ("differentiate + passes", quick))
    ]
    try:
        other = onnxsim_fused(model)
        step = engine_step(other, feeds, options.threads)
        found.append(Candidate("onnxsim graph_grad", len(other.graph.node), step))
    except Exception as error:
        reason = str(error).splitlines()[0].split(";")[0].split(" (")[0]
        found.append(Candidate("onnxsim graph_grad", None, None, reason))
    found.append(Candidate("torch eager", None, torch_step(network, feeds, compiled=False)))
    if options.compile:
        compiled = torch_step(network, feeds, compiled=True)
        found.append(Candidate("torch.compile", None, compiled))
    return found


def exact(network: nn.Module, feeds: dict[str, Array]) -> NDArray[np.float64]:
    """The gradient in float64, by eager torch."""
    wide = copy.deepcopy(network).double()
    x = torch.from_numpy(feeds["x"]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(wide(x), x, torch.from_numpy(feeds["ct_y"]).double())
    return gradient.numpy()


def measure(found: list[Candidate], truth: NDArray[np.float64], rounds: int) -> None:
    """Take the errors against the exact gradient, then time in turns.

    Raises: RuntimeError where a gradient is off by more than 1e-2 of the largest.
    """
    running = [(c, c.step) for c in found if c.step is not None]
    for candidate, step in running:
        candidate.error = float(np.abs(step() - truth).max() / np.abs(truth).max())
        if not candidate.error < 1e-2:
            raise RuntimeError(f"{candidate.name} is off by {candidate.error:.2g}")
        step()
    for _ in range(rounds):
        for candidate, step in running:
            start = time.perf_counter()
            step()
            candidate.seconds.append(time.perf_counter() - start)


def report(title: str, forward_nodes: int, found: list[Candidate]) -> list[dict[str, Any]]:
    """Print one graph's table; returns its rows."""
    base = found[0].seconds
    rows = []
    print(f"\n{title}: {forward_nodes} forward nodes\n")
    print("| step | nodes | error | median ms | times |\n|---|---:|---:|---:|---:|")
    for c in found:
        if not c.seconds:
            print(f"| {c.name} | – | – | – | refused: {c.reason} |")
            rows.append({"graph": title, "step": c.name, "refused": c.reason})
            continue
        ratio = statistics.median(own / first for own, first in zip(c.seconds, base, strict=True))
        milliseconds = statistics.median(c.seconds) * 1e3
        print(f"| {c.name} | {c.nodes or '–'} | {c.error:.1e} | {milliseconds:.2f} | {ratio:.2f} |")
        rows.append(
            {"graph": title, "step": c.name, "nodes": c.nodes, "ms": milliseconds, "ratio": ratio}
        )
    return rows


def heading(options: Any) -> None:
    """Print what was compared with what, and how."""
    versions = {
        "ONNX Runtime": onnxruntime.__version__,
        "torch": torch.__version__,
        "onnxsim": metadata.version("onnxsim"),
    }
    print("# Gradients side by side\n")
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(
        f"Printed by `benchmarks/gradient_coverage.py --threads {options.threads} --rounds "
        f"{options.rounds}`; {tools}. A step is the output and the gradient with respect to the "
        "input, batch 1, float32. 'times' is the median over the rounds of the ratio to plain "
        "`differentiate` within a round; 'error' is the largest one against float64, relative "
        "to the largest gradient.\n"
    )


def coverage() -> dict[str, Any]:
    """Operators with rules here and in onnxsim."""
    from onnxsim import graph_grad

    theirs = set(graph_grad.supported_ops())
    ours = set(RULES)
    print("| | rules | of the generators' operators | not among them |\n|---|---:|---:|---|")
    result = {}
    for name, rules in (("differentiate", ours), ("onnxsim graph_grad", theirs)):
        lacking = [op for op in WANTED if op not in rules]
        print(f"| {name} | {len(rules)} | {len(WANTED) - len(lacking)} of {len(WANTED)} "
              f"| {' '.join(lacking) or '–'} |")  # fmt: skip
        result[name] = {"rules": sorted(rules), "lacking": lacking}
    print(f"\nonly in onnxsim: {' '.join(sorted(theirs - ours)) or '–'}")
    return result


def main() -> None:
    """Print the tables; write everything measured as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heading(options)
    result: dict[str, Any] = {"coverage": coverage(), "steps": []}
    rng = np.random.default_rng(0)
    for title, (network, shape) in networks().items():
        model = static_model(network, shape)
        x = rng.normal(size=(1, *shape)).astype(np.float32)
        with torch.no_grad():
            y = network(torch.from_numpy(x)).shape
        feeds = {"x": x, "ct_y": rng.normal(size=tuple(y)).astype(np.float32)}
        found = candidates(network, model, feeds, options)
        measure(found, exact(network, feeds), options.rounds)
        result["steps"] += report(title, len(model.graph.node), found)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
