"""Searches that stay on the GPU: one iteration captured as a CUDA graph and replayed.

A step (`Step`) puts one iteration on the stream: passes of an engine (`StreamPass`), kernels,
update and the bookkeeping of its items (`Progress`). `run` repeats it and looks at the items' flags
from time to time without waiting for the latest steps.
"""

from __future__ import annotations

from unblemish.runtime.device.engines.passes import StreamPass
from unblemish.runtime.device.loop import Schedule, run
from unblemish.runtime.device.progress import Progress
from unblemish.runtime.device.replay import Replay, Step
from unblemish.runtime.device.steps.alternation import DeviceAlternation
from unblemish.runtime.device.steps.blending import DeviceBlending
from unblemish.runtime.device.steps.descent import DeviceDescent
from unblemish.runtime.device.steps.inversion import DeviceInversion
from unblemish.runtime.device.steps.latent import DeviceLatentAdam, DeviceLatentLbfgs

__all__ = [
    "DeviceAlternation",
    "DeviceBlending",
    "DeviceDescent",
    "DeviceInversion",
    "DeviceLatentAdam",
    "DeviceLatentLbfgs",
    "Progress",
    "Replay",
    "Schedule",
    "Step",
    "StreamPass",
    "run",
]
