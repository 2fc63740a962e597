"""On a GPU: a value-and-gradient step of PGGAN-128, and RGI per image, 1 to 64 images at once.

    python benchmarks/gpu_steps.py step [--batch N] [--rounds N]
    python benchmarks/gpu_steps.py rgi [--engine torch|onnxruntime] [--batches 1 8 64] [--steps N]

`step`: ms by torch eager, torch.compile, torch's CUDA graphs, and ONNX Runtime's CUDA provider on
the fused graph with its tensors on the device. What is missing or fails is said, and the rest goes
on. `rgi`: the paper's schedule by `DeviceInversion`, the generator as torch's CUDA graphs or by
ONNX Runtime, update and bookkeeping by the CUDA kernels; random weights, which do not change the
time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from pggan_step import Problem, make_problem
from torch_passes import generator_passes

from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.backends.ort_device import OrtDeviceBackend
from unblemish.runtime.device import DeviceInversion, Replay, Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.inversion import GeneratorPasses

Step = Callable[[], object]


def loss_step(network: Callable[[torch.Tensor], torch.Tensor], problem: Problem) -> Step:
    """Value and gradient by autograd on the GPU."""
    z = torch.from_numpy(problem.z).cuda().requires_grad_()
    target = torch.from_numpy(problem.target).cuda()

    def step() -> object:
        loss = ((network(z) - target) ** 2).mean(dim=(1, 2, 3))
        return torch.autograd.grad(loss.sum(), z)

    return step


def captured(step: Step) -> Step:
    """The same as one CUDA graph of torch."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()
    return lambda: (graph.replay(), kept)


def by_onnxruntime(problem: Problem, folder: Path) -> Step:
    """The fused graph by ONNX Runtime on CUDA, every tensor on the device."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDAExecutionProvider (onnxruntime-gpu)")
    path = folder / "fused.onnx"
    onnx.save(problem.graphs["onnxruntime fused"], str(path))
    session = ort.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
    binding = session.io_binding()
    one = np.ones(len(problem.z), np.float32)
    for name, array in {"z": problem.z, "target": problem.target, "ct_loss": one}.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for node in session.get_outputs():
        binding.bind_output(node.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


def candidates(problem: Problem, folder: Path) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Ways to do the step, each made when its turn comes."""
    network = problem.network.cuda()
    yield "torch eager", lambda: loss_step(network, problem)
    yield "torch.compile", lambda: loss_step(torch.compile(network, fullgraph=True), problem)
    yield "torch, CUDA graph", lambda: captured(loss_step(network, problem))
    yield "onnxruntime CUDA, fused", lambda: by_onnxruntime(problem, folder)


def milliseconds(step: Step, rounds: int) -> list[float]:
    """Of each call, the device waited for."""
    times = []
    for turn in range(rounds + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append((time.perf_counter() - began) * 1e3)
    return times


def time_steps(batch: int, rounds: int) -> None:
    """Print the table of `step`."""
    problem = make_problem(128, batch)
    print(f"PGGAN-128, batch {batch}, {torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| step | ms, median | ms, best | images/s |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in candidates(problem, Path(folder)):
            try:
                times = milliseconds(make(), rounds)
            except Exception as error:  # the other ways are still worth knowing
                print(f"| {name} | failed: {str(error).splitlines()[0]} | | |", flush=True)
                continue
            middle = statistics.median(times)
            print(f"| {name} | {middle:.2f} | {min(times):.2f} | {batch / middle * 1e3:.0f} |",
                  flush=True)  # fmt: skip


def passes_of(engine: str, problem: Problem, kernels: CudaKernels, batch: int) -> GeneratorPasses:
    """The generator on the device by one of the engines."""
    if engine == "torch":
        network = problem.network.cuda()
        return generator_passes(kernels, network, batch, 512, (3, 128, 128))
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for part in ("forward", "backward"):
            paths.append(str(Path(folder) / f"{part}.onnx"))
            onnx.save(problem.graphs[f"onnxruntime {part}"], paths[-1])
        engines = OrtDeviceBackend("ort-cuda").on_device(kernels)
        z = kernels.device.zeros((batch, 512))
        return GeneratorPasses.of(engines.pair(paths[0], paths[1], {"z": z}))


def time_rgi(engine: str, batches: list[int], steps: int) -> None:
    """Print the table of `rgi`."""
    problem = make_problem(128, 1)
    print(f"RGI, {steps} steps, {engine}, {torch.cuda.get_device_name()}\n")
    print("| images at once | ms per step | s per image |\n|---:|---:|---:|")
    for batch in batches:
        kernels = CudaKernels()
        passes = passes_of(engine, problem, kernels, batch)
        search = DeviceInversion(kernels, passes, Ends(steps))
        rng = np.random.default_rng(0)
        images = rng.uniform(-1, 1, (batch, 3, 128, 128)).astype(np.float32)
        z = rng.standard_normal((batch, 512)).astype(np.float32)
        replay = Replay(kernels.device, search)
        for _ in range(2):  # the second time everything is warm
            search.start(images, z, np.full(batch, 0.07, np.float32))
            spent = run(kernels.device, replay, Schedule(50))
        done = int(search.outcome(spent).steps.max())
        print(f"| {batch} | {spent / done * 1e3:.3f} | {spent / batch:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("step", "rgi"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--engine", choices=("torch", "onnxruntime"), default="torch")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU.")
    if arguments.what == "step":
        time_steps(arguments.batch, arguments.rounds)
    else:
        time_rgi(arguments.engine, arguments.batches, arguments.steps)


if __name__ == "__main__":
    main()
