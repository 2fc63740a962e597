"""R-RGI on the device against that of the host: by weight-gradient graphs and by torch."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import emulated_backend
import numpy as np
import pytest
from emulated_backend import EmulatedBackend

from unblemish.bundle import Bundle
from unblemish.errors import BackendError, ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.ort_device import OrtDeviceBackend
from unblemish.runtime.device import Schedule, run
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.device.finetuner import Booked, DeviceFinetuner
from unblemish.runtime.device.steps.finetuning import DeviceFinetuning, WeightMemory, WeightPasses
from unblemish.runtime.device.steps.image_loss import LossSettings
from unblemish.runtime.engines import load_engines
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import Stopwatch
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.losses import image_loss
from unblemish.runtime.methods.rgi import Solution
from unblemish.runtime.methods.rrgi import Finetuner, HostFinetuner, Tuning, load_finetuner
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

STEPS = 12
EXTRAS = {"discriminator_weight": 0.1, "feature_weight": 0.1}
# Adam divides by a gradient's size: where that is near 0, roundings are steps of `finetune_lr`.
TRACE, IMAGE = {"rtol": 1e-4}, {"atol": 2e-4}


def _bundle(make_bundle: Any, *, graphs: bool = True, channels: int = 3, **rgi: Any) -> Bundle:
    settings = {"lam": 0.02, "finetune_steps": STEPS, "finetune_lr": 1e-3, **rgi}
    extras = any(name in rgi for name in EXTRAS)
    made: Bundle = make_bundle(channels=channels, rgi=settings, finetune=graphs, extras=extras)
    return made


class _Case:
    """The same images, latents and objective for both sides."""

    def __init__(self, bundle: Bundle, count: int = 3, seed: int = 4) -> None:
        rng = np.random.default_rng(seed)
        settings, channels = bundle.manifest.rgi, bundle.manifest.preprocess.channels
        engines = load_engines(bundle, OrtBackend(1))
        self.generator = engines.generator
        self.z = rng.standard_normal((count, 4)).astype(np.float32)
        self.made = self.generator.forward(self.z).copy()
        ramp = np.linspace(-0.06, 0.06, 16, dtype=np.float32)
        self.images = self.made + ramp + 0.01 * rng.standard_normal(self.made.shape)
        self.images[:, :, 4:9, 6:11] = 0.98
        lam = np.linspace(0.02, 0.3, count, dtype=np.float32)
        assert self.images.shape == (count, channels, 16, 16)
        self.inversion = Inversion(
            self.generator, image_loss(NumpyKernels(), settings.loss, masked=True),
            Targets(self.images.astype(np.float32), np.arange(count)), lam[None],
            settings.mask == "shared", engines.terms, settings.latent_weight,
        )  # fmt: skip
        self.found = Solution(
            self.z, None, np.full(count, 1.0), (Status.CONVERGED,) * count,
            np.full(count, 7), (np.ones(7),) * count,
        )  # fmt: skip

    def refined(
        self, finetuner: Finetuner, deadline: float | None = None, clock: Any = time.perf_counter
    ) -> Solution:
        return finetuner.refine(self.inversion, self.found, deadline, clock)


def _host(bundle: Bundle, **options: Any) -> HostFinetuner:
    found = load_finetuner(bundle, OrtBackend(1), NumpyKernels(), threads=1, **options)
    assert isinstance(found, HostFinetuner)
    return found


def _device(bundle: Bundle, kernels: CudaKernels, **options: Any) -> DeviceFinetuner:
    backend = EmulatedBackend(capturable=options.pop("capturable", True))
    engines = backend.on_device(kernels)
    found = load_finetuner(
        bundle, OrtBackend(1), NumpyKernels(), threads=1, device=engines, **options
    )
    assert isinstance(found, DeviceFinetuner)
    return found


def _assert_same(ours: Solution, theirs: Solution) -> None:
    assert ours.status == theirs.status
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    for one, other in zip(ours.trace, theirs.trace, strict=True):
        np.testing.assert_allclose(one, other, **TRACE)
    np.testing.assert_allclose(ours.value, theirs.value, **TRACE)
    assert ours.images is not None
    assert theirs.images is not None
    np.testing.assert_allclose(ours.images, theirs.images, **IMAGE)
    np.testing.assert_allclose(ours.z, theirs.z, **IMAGE)


@pytest.mark.parametrize("by", ["graphs", "torch"])
@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(
    ("channels", "rgi"),
    [
        (1, {}),
        (3, {}),
        (3, {"mask": "element"}),
        (1, {"latent_weight": 0.05}),
        (3, {"loss": "l1", "lam": 0.1}),
        (3, EXTRAS),
    ],
    ids=["grey", "colour", "element", "prior", "l1", "terms"],
)
def test_finetuning_is_that_of_the_host(
    make_bundle: Any, kernels: Any, by: str, paper: bool, channels: int, rgi: dict[str, Any]
) -> None:
    if by == "torch":
        pytest.importorskip("torch")
    bundle = _bundle(make_bundle, graphs=by == "graphs", channels=channels, **rgi)
    case = _Case(bundle)
    ours = case.refined(_device(bundle, kernels, paper=paper))
    _assert_same(ours, case.refined(_host(bundle, paper=paper)))
    assert any(t[8:].min() < t[7] for t in ours.trace)


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_a_whole_search_is_that_of_the_host(
    make_bundle: Any, part: Any, kernels: Any, schedule: str
) -> None:
    bundle = _bundle(make_bundle)
    options = {"refine": "rrgi", "schedule": schedule, "max_steps": 20}
    host = Search(bundle, SearchOptions(backend="onnxruntime", threads=1, **options))
    ours = Search(bundle, SearchOptions(backend=EmulatedBackend(), **options), kernels=kernels)
    assert isinstance(ours._finetuner, DeviceFinetuner)
    expected, found = host(part[0]), ours(part[0])
    assert (found.status, found.steps) == (expected.status, expected.steps)
    assert found.objective == pytest.approx(expected.objective, rel=1e-3)
    np.testing.assert_allclose(found.restored, expected.restored, atol=2e-3)
    assert found.timings["device"] > 0


@pytest.mark.parametrize("by", ["graphs", "torch"])
def test_weights_are_private_copies(make_bundle: Any, kernels: Any, by: str) -> None:
    if by == "torch":
        pytest.importorskip("torch")
    bundle = _bundle(make_bundle, graphs=by == "graphs", finetune_lr=2e-3)
    before = {p.name: hashlib.sha256(p.read_bytes()).digest() for p in bundle.path.iterdir()}
    case, finetuner = _Case(bundle), _device(bundle, kernels)
    first, again = case.refined(finetuner), case.refined(finetuner)
    assert first.images is not None
    assert again.images is not None
    assert np.abs(first.images - case.made).max() > 0.005
    np.testing.assert_array_equal(first.images, again.images)
    for one, other in zip(first.trace, again.trace, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(case.generator.forward(case.z), case.made)
    after = {p.name: hashlib.sha256(p.read_bytes()).digest() for p in bundle.path.iterdir()}
    assert before == after


def test_torch_reads_and_writes_the_memory_of_the_kernels(make_bundle: Any, kernels: Any) -> None:
    pytest.importorskip("torch")
    step = _device(_bundle(make_bundle, graphs=False), kernels).step
    forward: Any = step.passes.generator.forward
    for name, weight in forward._graph.weights.items():
        assert weight.data_ptr() == step.weights.parts[name].pointer
    assert forward._out.data_ptr() == step.passes.generator.image.pointer


@pytest.mark.parametrize("capturable", [True, False])
def test_one_captured_step_serves_all_images(
    make_bundle: Any, kernels: Any, capturable: bool
) -> None:
    bundle = _bundle(make_bundle)
    case, finetuner = _Case(bundle), _device(bundle, kernels, capturable=capturable)
    driver = kernels.device.driver
    case.refined(finetuner)
    allocations = driver.allocations
    finetuner.step.start(case.images[:1], case.z[:1], 0.1)
    waits = driver.waits
    run(kernels.device, finetuner.replay, Schedule(4))
    assert driver.waits == waits + 1  # at the end
    assert driver.allocations == allocations
    assert finetuner.replay.captured is capturable


@pytest.mark.parametrize("by", ["graphs", "torch"])
def test_nothing_but_flags_leaves_the_device_in_the_loop(
    make_bundle: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "torch":
        pytest.importorskip("torch")
    bundle = _bundle(make_bundle, graphs=by == "graphs")
    case, finetuner = _Case(bundle), _device(bundle, kernels)
    driver, moved = kernels.device.driver, []
    finetuner.step.start(case.images[:1], case.z[:1], 0.1)
    upload, download = driver.upload, driver.download
    monkeypatch.setattr(
        driver, "upload", lambda *given: (moved.append(given[1].nbytes), upload(*given))
    )
    monkeypatch.setattr(
        driver, "download", lambda *given: (moved.append(given[0].nbytes), download(*given))
    )
    run(kernels.device, finetuner.replay, Schedule(4))
    assert moved == [4] * 4  # after the first iteration, and every four of the other eleven


@pytest.mark.parametrize("by", ["graphs", "torch"])
def test_a_value_that_is_not_finite_ends_with_the_weights_before(
    make_bundle: Any, kernels: Any, by: str
) -> None:
    if by == "torch":
        pytest.importorskip("torch")
    bundle = _bundle(make_bundle, graphs=by == "graphs", finetune_lr=1e37)
    case = _Case(bundle)
    case.inversion.targets.images[1, 0, 3, 3] = np.inf
    ours, theirs = case.refined(_device(bundle, kernels)), case.refined(_host(bundle))
    assert theirs.status == (Status.NON_FINITE,) * 3
    assert list(theirs.steps) == [9, 8, 9]
    _assert_same(ours, theirs)
    assert ours.images is not None
    np.testing.assert_allclose(ours.images, case.made, atol=1e-6)


class _Linear:
    """G(z; A, b) = A z + b over 2 x 7 x 9 elements; the gradient of call `breaks` is NaN in one."""

    def __init__(self, breaks: int = -1) -> None:
        rng = np.random.default_rng(9)
        self.weights = {
            "A": rng.normal(size=(126, 5)).astype(np.float32),
            "b": rng.normal(size=(1, 126)).astype(np.float32),
            "gain": np.ones(1, np.float32),
        }
        self.breaks, self.calls, self.watch = breaks, 0, Stopwatch()
        self._last: Any = None

    def forward(self, z: Any, weights: Any = None) -> Any:
        self._last = (z.copy(), {name: array.copy() for name, array in weights.items()})
        made = weights["gain"] * (z @ weights["A"].T + weights["b"])
        return made.astype(np.float32).reshape(1, 2, 7, 9)

    def backward(self, cotangent: Any) -> Any:
        z, weights = self._last
        flat, gain = cotangent.reshape(1, 126), weights["gain"][0]
        gradients = {
            "A": gain * flat.T @ z,
            "b": gain * flat,
            "gain": np.sum(flat * (z @ weights["A"].T + weights["b"]), keepdims=True).reshape(1),
        }
        self.calls += 1
        if self.calls == self.breaks:
            gradients["b"] = np.where(np.arange(126) == 77, np.nan, gradients["b"])
        cast = {name: array.astype(np.float32) for name, array in gradients.items()}
        return (gain * flat @ weights["A"]).astype(np.float32), cast


def _linear_step(kernels: Any, numpy_pass: Any, linear: _Linear, tuning: Tuning) -> Any:
    """The same generator as passes on the device."""
    device = kernels.device
    memory = WeightMemory.holding(device, linear.weights)
    inputs = {"z": device.zeros((1, 5)), **memory.parts}
    outputs = {"image": device.zeros((1, 2, 7, 9))}
    cotangent = device.zeros((1, 2, 7, 9))
    gradients = {name: device.zeros(array.shape) for name, array in inputs.items()}

    def forward(z: Any, **weights: Any) -> dict[str, Any]:
        return {"image": linear.forward(z, weights)}

    def backward(ct: Any) -> dict[str, Any]:
        grad, others = linear.backward(ct)
        return {"z": grad, **others}

    pair = PassPair(
        numpy_pass(inputs, outputs, forward), numpy_pass({"ct": cotangent}, gradients, backward),
        {"image": cotangent}, gradients,
    )  # fmt: skip
    passes = WeightPasses.of(pair, "z", "image")
    return DeviceFinetuning(kernels, passes, memory, tuning, LossSettings())


@pytest.mark.parametrize("breaks", [-1, 1, 5])
@pytest.mark.parametrize("hold", [0.0, 10.0])
def test_a_gradient_that_is_not_finite_ends_as_on_the_host(
    kernels: Any, numpy_pass: Any, breaks: int, hold: float
) -> None:
    tuning = Tuning(9, 1e-2, hold=hold)
    rng = np.random.default_rng(10)
    images = rng.normal(size=(1, 2, 7, 9)).astype(np.float32)
    inversion = Inversion(
        Booked(), image_loss(NumpyKernels(), "l2", masked=True), Targets(images, np.arange(1)),  # type: ignore[arg-type]
        np.full((1, 1), 0.3, np.float32),
    )  # fmt: skip
    found = Solution(
        rng.normal(size=(1, 5)).astype(np.float32), None, np.ones(1), (Status.CONVERGED,),
        np.zeros(1, np.intp), (np.zeros(0),),
    )  # fmt: skip
    results = []
    for side in ("device", "host"):
        linear = _Linear(breaks)
        finetuner: Finetuner
        if side == "device":
            finetuner = DeviceFinetuner(_linear_step(kernels, numpy_pass, linear, tuning))
        else:
            finetuner = HostFinetuner(linear, linear.weights, NumpyKernels(), tuning)
        results.append(finetuner.refine(inversion, found, None, time.perf_counter))
    _assert_same(*results)
    status = Status.NON_FINITE if breaks > 0 else Status.CONVERGED
    assert results[1].status == (status,)
    assert results[1].steps[0] == (breaks if breaks > 0 else 9)


def test_weights_begin_where_allocations_may(kernels: Any) -> None:
    shapes = {"a": (3, 5), "b": (), "c": (64,), "d": (1, 65)}
    memory = WeightMemory(kernels.device, shapes)
    assert memory.flat.shape == (1, 64 + 64 + 64 + 128)
    assert {name: part.shape for name, part in memory.parts.items()} == shapes
    assert all((part.pointer - memory.flat.pointer) % 256 == 0 for part in memory.parts.values())
    values = {
        name: np.full(shape, i + 1.0, np.float32) for i, (name, shape) in enumerate(shapes.items())
    }
    held = WeightMemory.holding(kernels.device, values)
    total = sum(array.sum() for array in values.values())
    assert kernels.device.to_host(held.flat).sum() == total
    np.testing.assert_array_equal(kernels.device.to_host(held.parts["d"]), values["d"])


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock on which every pass of an engine takes half a second."""
    seconds = [0.0]
    enqueue = emulated_backend._LaterPass.enqueue

    def slow(self: Any, stream: int) -> None:
        enqueue(self, stream)
        self._driver.enqueue(lambda: seconds.__setitem__(0, seconds[0] + 0.5))

    monkeypatch.setattr(emulated_backend._LaterPass, "enqueue", slow)
    return lambda: seconds[0]


@pytest.mark.parametrize("deadline", [0.0, 4.0, 9.0])
def test_the_deadline_is_kept(
    make_bundle: Any, kernels: Any, ticking: Any, deadline: float
) -> None:
    bundle = _bundle(make_bundle, finetune_steps=50)
    case = _Case(bundle, count=1)
    full = case.refined(_host(bundle))
    found = case.refined(_device(bundle, kernels), deadline, ticking)
    assert ticking() <= deadline + 1.0  # the image before, and that of the best weights
    assert found.status == (Status.DEADLINE,)
    taken = int(found.steps[0]) - 7
    assert taken == max(int(deadline - 0.5), 0)
    np.testing.assert_allclose(found.trace[0], full.trace[0][: 7 + taken], **TRACE)
    assert found.images is not None
    if taken == 0:
        np.testing.assert_allclose(found.images, case.made, atol=1e-6)


def test_an_engine_that_refuses_leaves_it_to_the_host(
    make_bundle: Any, kernels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str) -> Any:
        raise BackendError("no engine was built for it.")

    engines = DeviceEngines(kernels, refuse)
    found = load_finetuner(_bundle(make_bundle), OrtBackend(1), NumpyKernels(), device=engines)
    assert isinstance(found, HostFinetuner)
    assert [record.getMessage() for record in caplog.records] == [
        "R-RGI: the weights are fine-tuned on the host: no engine was built for it."
    ]
    assert not kernels.device.driver.pending  # nothing is left that reads what is gone


@pytest.mark.gpu
@pytest.mark.parametrize("by", ["graphs", "torch"])
def test_finetuning_on_a_gpu_is_that_of_the_host(make_bundle: Any, by: str) -> None:
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
    if by == "torch" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch has no CUDA here")
    kernels, bundle = CudaKernels(), _bundle(make_bundle, graphs=by == "graphs")
    case, host = _Case(bundle), _host(bundle)
    engines = OrtDeviceBackend("ort-cuda", 1).on_device(kernels)
    found = load_finetuner(bundle, OrtBackend(1), NumpyKernels(), threads=1, device=engines)
    assert isinstance(found, DeviceFinetuner)
    _assert_same(case.refined(found), case.refined(host))


def test_torch_without_cuda_is_said(make_bundle: Any, kernels: Any, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    from unblemish.runtime.device.engines.torch_pass import torch_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device(kernels.device).type == "cpu"
    monkeypatch.setattr(kernels.device.driver, "device", (2, 1))
    with pytest.raises(BackendError, match=r"cannot use the GPU\. Install a build with CUDA"):
        torch_device(kernels.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device(kernels.device) == torch.device("cuda", 1)


def test_torch_on_a_gpu_works_on_the_kernels_stream(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from unblemish.runtime.device.engines.torch_pass import on_stream

    entered: list[Any] = []

    @contextlib.contextmanager
    def stream(seen: Any) -> Iterator[None]:
        entered.append(seen)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda *given: given)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    waits, before = kernels.device.driver.waits, torch.backends.cudnn.allow_tf32
    with on_stream(kernels.device, torch.device("cuda", 1)):
        assert entered == [(kernels.stream, torch.device("cuda", 1))]
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    assert entered[1:] == ["left"]
    assert torch.backends.cudnn.allow_tf32 is before
    assert kernels.device.driver.waits == waits
    with (
        pytest.raises(BackendError, match=r"torch failed on the device: out of memory\."),
        on_stream(kernels.device, torch.device("cuda", 1)),
    ):
        raise RuntimeError("out of memory.")


def test_what_does_not_fit_is_refused(make_bundle: Any, kernels: Any) -> None:
    step = _device(_bundle(make_bundle), kernels).step
    for image, z in (((1, 3, 16, 15), (1, 4)), ((1, 3, 16, 16), (1, 5))):
        with pytest.raises(ShapeError, match="image and latent must be"):
            step.start(np.zeros(image, np.float32), np.zeros(z, np.float32), 0.1)
