"""On a GPU: R-RGI's fine-tuning of PGGAN, its weights on the device, per step and per image.

    python benchmarks/gpu_finetuning.py [--engine torch|onnxruntime] [--size N] [--steps N]

A step is forward, objective, way back to latent and weights, and Adam on all of them; by the
weight-gradient graphs in ONNX Runtime, or by torch's autograd on the plain graph. Random weights,
which do not change the time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from unblemish.export import differentiate
from unblemish.export.from_torch import to_onnx
from unblemish.export.models.pggan import Generator, PgganSettings
from unblemish.export.passes import optimise
from unblemish.export.weights import weights_of
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.backends.ort_device import OrtDeviceBackend
from unblemish.runtime.backends.torch_graph import TorchGraph
from unblemish.runtime.device import Replay, Schedule, run
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.torch_pass import torch_pair
from unblemish.runtime.device.steps.finetuning import DeviceFinetuning, WeightMemory, WeightPasses
from unblemish.runtime.device.steps.image_loss import LossSettings
from unblemish.runtime.methods.rrgi import Tuning

LATENT = 512


def generator(size: int) -> onnx.ModelProto:
    """PGGAN from a fixed seed, every weight an initialiser."""
    torch.manual_seed(0)
    network = Generator(PgganSettings(size=size)).folded()
    return to_onnx(network, (LATENT,), input_name="z", output_name="image")


def passes_of(
    engine: str, model: onnx.ModelProto, engines: DeviceEngines
) -> tuple[WeightPasses, WeightMemory]:
    """The generator with free weights on the device, by one of the engines."""
    device, weights = engines.kernels.device, weights_of(model)
    memory = WeightMemory.holding(device, weights)
    inputs = {"z": device.zeros((1, LATENT)), **memory.parts}
    if engine == "torch":
        pair = torch_pair(device, TorchGraph(model, dtype=torch.float32), inputs, "image")
        return WeightPasses.of(pair, "z", "image"), memory
    ways = differentiate(model, wrt=["z", *weights], outputs=["image"])
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{way}.onnx") for way in ("forward", "backward")]
        for path, graph in zip(paths, (ways.forward, ways.backward), strict=True):
            onnx.save(optimise(graph), path)
        pair = engines.pair(paths[0], paths[1], inputs)
    return WeightPasses.of(pair, "z", "image"), memory


def seconds_of(
    engine: str, size: int, steps: int, engines: DeviceEngines
) -> tuple[float, WeightMemory]:
    """Seconds that an image takes when everything is warm, and the weights."""
    kernels = engines.kernels
    passes, memory = passes_of(engine, generator(size), engines)
    step = DeviceFinetuning(kernels, passes, memory, Tuning(steps, 1e-5), LossSettings())
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    z = rng.standard_normal((1, LATENT)).astype(np.float32)
    replay = Replay(kernels.device, step)
    spent = 0.0
    for _ in range(2):  # the second time everything is warm
        step.start(image, z, 0.07)
        kernels.synchronise()
        spent = run(kernels.device, replay, Schedule(10))
    assert int(step.outcome(spent)[1].steps[0]) == steps
    return spent, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("torch", "onnxruntime"), default="onnxruntime")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU.")
    engines = OrtDeviceBackend("ort-cuda").on_device(CudaKernels())
    spent, memory = seconds_of(arguments.engine, arguments.size, arguments.steps, engines)
    print(f"R-RGI, PGGAN-{arguments.size}, {arguments.engine}, {torch.cuda.get_device_name()}\n")
    print("| weights, million | ms per step | s per image |\n|---:|---:|---:|")
    weights = sum(part.size for part in memory.parts.values()) / 1e6
    print(f"| {weights:.1f} | {spent / arguments.steps * 1e3:.3f} | {spent:.3f} |")


if __name__ == "__main__":
    main()
