"""Time one value-and-gradient step of PGGAN-128 in torch, ONNX Runtime and OpenVINO.

    python benchmarks/pggan_step.py [--rounds N] [--threads N] [--batch N] [--size N] [--bf16]

The step: image G(z), mean squared error to a given image, gradient with respect to z; float32,
random weights, the same threads for all. 'fused' is one graph with the loss inside; 'pair' is what
inspection runs, forward and backward graph with the loss in between by the kernels. 'plain' graphs
come out of `differentiate` as they are, 'optimised' ones out of `export.passes`.

The candidates take turns within every round; a ratio is the median over the rounds of the ratio
within a round. CPU time, of all threads, is what to compare where other processes run, with one
thread: waiting threads spin. The peak is the best of large float32 matrix products in torch, NumPy
and both engines, in the same run; 'naive' FLOP are those of the generator as published, twice
(there and back), 'done' those of the convolutions and products of the graph that ran.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from unblemish.export import differentiate
from unblemish.export.flops import value_shapes
from unblemish.export.from_torch import to_onnx
from unblemish.export.models.pggan import Equalised, Generator, PgganSettings
from unblemish.export.passes import ONNXRUNTIME_PASSES, optimise
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import Backend, open_backend
from unblemish.runtime.backends.openvino import OpenVinoBackend

Float = NDArray[np.float32]
Step = Callable[[], Float]
PEAK_SIDE = 1536


@dataclass
class Candidate:
    """One way to do the step; `step` returns the gradient."""

    name: str
    step: Step
    flops: float
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)  # CPU time of all threads


@dataclass(frozen=True)
class Problem:
    """The generator, its exported forms, and one step's data."""

    network: Generator
    z: Float
    target: Float
    graphs: dict[str, onnx.ModelProto]


def with_loss(model: onnx.ModelProto) -> onnx.ModelProto:
    """The generator followed by its mean squared error to a second input, `target`."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    image = graph.output[0]
    target = onnx.ValueInfoProto()
    target.CopyFrom(image)
    target.name = "target"
    graph.input.append(target)
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "pixels"))
    graph.node.extend(
        [
            # Resize hides from shape inference that image and target have equal batches.
            helper.make_node("Shape", ["target"], ["target_shape"]),
            helper.make_node("Reshape", [image.name, "target_shape"], ["shaped"]),
            helper.make_node("Sub", ["shaped", "target"], ["residual"]),
            helper.make_node("Mul", ["residual", "residual"], ["square"]),
            helper.make_node("ReduceMean", ["square", "pixels"], ["loss"], keepdims=0),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", 1, [target_batch(target)]))
    return result


def target_batch(value: onnx.ValueInfoProto) -> str:
    """Name of the batch dimension."""
    return str(value.type.tensor_type.shape.dim[0].dim_param)


def make_problem(size: int, batch: int) -> Problem:
    """Build the generator from a fixed seed, export and differentiate it."""
    torch.manual_seed(0)
    network = Generator(PgganSettings(size=size)).folded()
    model = to_onnx(network, (512,), input_name="z", output_name="image")
    lean = optimise(model)
    graphs = {"generator": model}
    for tag, source in (("plain", model), ("optimised", lean)):
        pair, fused = (
            differentiate(source, ["z"]),
            differentiate(with_loss(source), ["z"], ["loss"]),
        )
        made = {"forward": pair.forward, "backward": pair.backward, "fused": fused.fused}
        for part, graph in made.items():
            if tag == "plain":
                graphs[f"plain {part}"] = graph
                continue
            graphs[f"openvino {part}"] = optimise(graph)
            graphs[f"onnxruntime {part}"] = optimise(graph, ONNXRUNTIME_PASSES)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, 512)).astype(np.float32)
    target = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
    return Problem(network, z, target, graphs)


def torch_step(network: Callable[[torch.Tensor], torch.Tensor], problem: Problem) -> Step:
    """The step in torch, eager or compiled."""
    z = torch.from_numpy(problem.z.copy()).requires_grad_()
    target = torch.from_numpy(problem.target)

    def step() -> Float:
        z.grad = None
        # The mean of each image, summed over the batch.
        ((network(z) - target) ** 2).mean(dim=(1, 2, 3)).sum().backward()  # type: ignore[no-untyped-call]
        return np.asarray(z.grad)

    return step


def fused_step(backend: Backend, path: str, problem: Problem) -> Step:
    """The step as one graph."""
    program = backend.program(path)
    one = np.ones(len(problem.z), np.float32)
    feeds = {"z": problem.z, "target": problem.target, "ct_loss": one}
    return lambda: program.run(feeds)["grad_z"]


def pair_step(backend: Backend, forward: str, backward: str, problem: Problem) -> Step:
    """The step as inspection does it."""
    pair, kernels = backend.pair(forward, backward), default_kernels()
    cotangent, objective = np.empty_like(problem.target), np.empty(len(problem.z))
    scale = np.full(len(problem.z), 1 / problem.target[0].size, np.float32)

    def step() -> Float:
        image = pair.forward({"z": problem.z})["image"]
        kernels.residual_l2(problem.target, image, scale, cotangent=cotangent, objective=objective)
        return pair.backward({"image": cotangent})["z"]

    return step


def engine_candidates(
    problem: Problem, folder: Path, backends: list[Backend]
) -> Iterator[Candidate]:
    """Plain and optimised graphs, fused and as a pair, in every backend."""
    for name, graph in problem.graphs.items():
        onnx.save(graph, str(folder / f"{name}.onnx"))
    for backend in backends:
        for tag, word in (("plain", "plain"), (backend.name, "optimised")):
            name = f"{backend.name}{getattr(backend, 'label', '')}, {word}"
            fused, forward, backward = (
                str(folder / f"{tag} {part}.onnx") for part in ("fused", "forward", "backward")
            )
            graphs = [problem.graphs[f"{tag} {part}"] for part in ("forward", "backward")]
            flops = sum(product_flops(graph, len(problem.z)) for graph in graphs)
            yield Candidate(f"{name}, fused", fused_step(backend, fused, problem), flops)
            yield Candidate(f"{name}, pair", pair_step(backend, forward, backward, problem), flops)


def product_flops(model: onnx.ModelProto, batch: int) -> float:
    """FLOP of convolutions and matrix products: 2 for every multiplication with a weight."""
    shapes, total = value_shapes(model, batch), 0.0
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = shapes[node.input[1]]
            places = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
            total += 2.0 * places[0] * np.prod(places[2:]) * np.prod(weight)
        elif node.op_type in ("Gemm", "MatMul"):
            total += 2.0 * batch * np.prod(shapes[node.input[1]])
    return total


def peaks(folder: Path, backends: list[Backend]) -> dict[str, Callable[[], Any]]:
    """Large square matrix products."""
    side = PEAK_SIDE
    left = np.random.default_rng(1).standard_normal((side, side)).astype(np.float32)
    tensor = torch.from_numpy(left)
    text = (
        '<ir_version: 9, opset_import: ["": 17]> '
        f"g (float[{side},{side}] x) => (float[{side},{side}] y) {{ y = MatMul(x, W) }}"
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(left, "W"))
    path = str(folder / "product.onnx")
    onnx.save(model, path)
    programs = [backend.program(path) for backend in backends]
    by_engines = {
        backend.name: partial(program.run, {"x": left})
        for backend, program in zip(backends, programs, strict=True)
    }
    return {"torch": lambda: tensor @ tensor, "numpy": lambda: left @ left, **by_engines}


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call: on the clock, and of CPU time."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def measure(
    candidates: list[Candidate], products: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Fill in the times of every candidate; return the peaks in FLOP/s."""
    best = dict.fromkeys(products, float("inf"))
    for turn in range(rounds + 2):
        for candidate in candidates:
            # The first call after another engine's turn pays for its caches: time the second.
            candidate.step()
            seconds, busy = timed(candidate.step)
            if turn > 1:
                candidate.seconds.append(seconds)
                candidate.busy.append(busy)
        for name, product in products.items():
            best[name] = min(best[name], timed(product)[0], timed(product)[0])
    return {name: 2 * PEAK_SIDE**3 / seconds for name, seconds in best.items()}


HEAD = (
    "step", "ms, median", "ms, best", "CPU ms", "eager / it", "compile / it",
    "eager / it, CPU time", "GFLOP done", "of peak", "naive of peak", "gradient error",
)  # fmt: skip


def report(
    candidates: list[Candidate], peak: float, naive: float, exact: NDArray[np.float64]
) -> None:
    """Print the table."""
    eager = candidates[0]
    compiled = next((c for c in candidates if c.name.startswith("torch.compile")), None)
    print(f"| {' | '.join(HEAD)} |\n|---|{'---:|' * (len(HEAD) - 1)}")
    for c in candidates:
        best = min(c.seconds)
        error = np.abs(c.step() - exact).max() / np.abs(exact).max()
        row = (
            c.name,
            f"{statistics.median(c.seconds) * 1e3:.1f}",
            f"{best * 1e3:.1f}",
            f"{statistics.median(c.busy) * 1e3:.1f}",
            f"{ratio(eager, c):.2f}",
            f"{ratio(compiled, c):.2f}" if compiled else "-",
            f"{statistics.median(eager.busy) / statistics.median(c.busy):.2f}",
            f"{c.flops / 1e9:.1f}",
            f"{100 * c.flops / best / peak:.0f} %",
            f"{100 * naive / best / peak:.0f} %",
            f"{error:.1e}",
        )
        print(f"| {' | '.join(row)} |")


def ratio(above: Candidate, below: Candidate) -> float:
    """How many times faster `below` is, by rounds."""
    pairs = zip(above.seconds, below.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def torch_candidates(problem: Problem, naive: float) -> Iterator[Candidate]:
    """Eager, channels-last eager, and compiled torch."""
    yield Candidate("torch eager", torch_step(problem.network, problem), naive)
    try:
        compiled = torch.compile(problem.network, fullgraph=True)
        step = torch_step(compiled, problem)
        step()
        yield Candidate("torch.compile, full graph", step, naive)
    except Exception as error:  # whatever its C++ route lacks
        print(f"torch.compile failed: {str(error).splitlines()[0]}\n")


def exact_gradient(problem: Problem) -> NDArray[np.float64]:
    """The gradient in float64."""
    network = Generator(problem.network.settings).double()
    network.load_state_dict(problem.network.state_dict())
    for layer in network.modules():
        if isinstance(layer, Equalised):
            layer.factor = 1.0  # folded into the weights already
    z = torch.from_numpy(problem.z).double().requires_grad_()
    target = torch.from_numpy(problem.target).double()
    ((network(z) - target) ** 2).mean(dim=(1, 2, 3)).sum().backward()
    assert z.grad is not None
    return z.grad.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--bf16", action="store_true", help="add OpenVINO in bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    problem = make_problem(arguments.size, arguments.batch)
    backends = [open_backend(name, arguments.threads) for name in ("onnxruntime", "openvino")]
    if arguments.bf16:
        half = OpenVinoBackend(arguments.threads, precision="bf16")
        half.label = " bf16"  # type: ignore[attr-defined]
        backends.append(half)
    naive = 2 * product_flops(problem.graphs["generator"], arguments.batch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        candidates = [
            *torch_candidates(problem, naive),
            *engine_candidates(problem, folder, backends),
        ]
        reached = measure(candidates, peaks(folder, backends[:2]), arguments.rounds)
        print(
            f"PGGAN-{arguments.size}, batch {arguments.batch}, {arguments.threads} thread(s), "
            f"torch {torch.__version__}, {arguments.rounds} rounds; "
            f"{naive / 1e9:.1f} GFLOP naive\n\n"
            f"Products of {PEAK_SIDE} x {PEAK_SIDE} matrices, GFLOP/s: "
            + ", ".join(f"{name} {value / 1e9:.0f}" for name, value in reached.items())
            + "\n"
        )
        report(candidates, max(reached.values()), naive, exact_gradient(problem))


if __name__ == "__main__":
    main()
