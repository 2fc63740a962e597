"""The harness of the gradient rules' tests: one model in, four independent checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from unblemish.export import Differentiated, differentiate

Arrays = dict[str, NDArray[Any]]

# Central differences in float64, step 1e-5: truncation ~h² = 1e-10, rounding ~1e-16 / h = 1e-11,
# both relative to values of order one; 1e-6 leaves room for third derivatives of a few hundred.
STEP, DIFFERENCE_TOLERANCE = 1e-5, 1e-6
# float32 has 2⁻²³ ≈ 1.2e-7; sums of a few hundred products in another order differ by ~1e-5.
FLOAT32_TOLERANCE = 2e-5
# float16 has 2⁻¹⁰ ≈ 1e-3; a chain of ten operators of a few dozen terms stays within 2e-2.
FLOAT16_TOLERANCE = 2e-2


def _torch_conv(op: str, x: Any, w: Any, b: Any, attributes: dict[str, Any]) -> NDArray[Any]:
    """Conv or ConvTranspose with explicit pads, in the dtype of x."""
    import torch

    rank = x.ndim - 2
    strides = attributes["strides"] or [1] * rank
    dilations = attributes["dilations"] or [1] * rank
    pads = attributes["pads"] or [0] * 2 * rank
    tensors = [None if t is None else torch.tensor(np.ascontiguousarray(t)) for t in (x, w, b)]
    if op == "Conv":
        around = [p for a in reversed(range(rank)) for p in (pads[a], pads[rank + a])]
        image = torch.nn.functional.pad(tensors[0], around)
        function = getattr(torch.nn.functional, f"conv{rank}d")
        return function(image, *tensors[1:], strides, 0, dilations, attributes["group"]).numpy()
    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    full = function(tensors[0], tensors[1], None, strides, 0, 0, attributes["group"], dilations)
    extra = attributes["output_padding"] or [0] * rank
    full = torch.nn.functional.pad(full, [p for a in reversed(range(rank)) for p in (0, extra[a])])
    if b is not None:
        full = full + tensors[2].reshape(-1, *[1] * rank)
    for axis in range(rank):
        size = full.shape[2 + axis] - pads[axis] - pads[rank + axis]
        full = full.narrow(2 + axis, pads[axis], size)
    return full.numpy()


class Conv(OpRun):
    """ONNX's reference lacks groups of unequal channels: float64 convolutions are torch's."""

    def _run(self, x, w, b=None, auto_pad=None, **attributes):
        if auto_pad not in (None, "NOTSET"):
            raise NotImplementedError(auto_pad)
        return (_torch_conv("Conv", x, w, b, attributes),)


class ConvTranspose(OpRun):
    """As Conv."""

    def _run(self, x, w, b=None, auto_pad=None, output_shape=None, **attributes):
        if auto_pad not in (None, "NOTSET") or output_shape:
            raise NotImplementedError(auto_pad)
        return (_torch_conv("ConvTranspose", x, w, b, attributes),)


class MaxPool(OpRun):
    """ONNX's reference gives wrong indices where windows are padded."""

    def _run(self, x, auto_pad=None, pads=None, **attributes):
        import torch

        rank = x.ndim - 2
        strides = attributes["strides"] or [1] * rank
        dilations = attributes["dilations"] or [1] * rank
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            pads = self._same(x.shape[2:], attributes["kernel_shape"], strides, dilations, auto_pad)
        pads = pads or [0] * 2 * rank
        widths = [(0, 0), (0, 0)]
        for a, (k, s, d) in enumerate(
            zip(attributes["kernel_shape"], strides, dilations, strict=True)
        ):
            extent, reach = (k - 1) * d + 1, x.shape[2 + a] + pads[a]
            rest = reach + pads[rank + a] - extent
            count = (-(-rest // s) if attributes["ceil_mode"] else rest // s) + 1
            count -= (count - 1) * s >= reach  # a window may not begin in the right pad
            widths.append((pads[a], max(s * (count - 1) + extent - reach, 0)))
        image = torch.tensor(np.pad(x, widths, constant_values=-np.inf))
        function = getattr(torch.nn.functional, f"max_pool{rank}d")
        y, flat = function(
            image, attributes["kernel_shape"], strides, 0, dilations, return_indices=True
        )
        places = np.unravel_index(flat.numpy(), image.shape[2:])
        inner = [p - pads[a] for a, p in enumerate(places)]
        batch, channel = np.indices(y.shape)[:2]
        return y.numpy(), np.ravel_multi_index((batch, channel, *inner), x.shape).astype(np.int64)

    @staticmethod
    def _same(sizes, kernel, strides, dilations, mode):
        """Pads that give ceil(size / stride) windows."""
        zipped = zip(sizes, kernel, strides, dilations, strict=True)
        totals = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in zipped]
        halves = [[t // 2 for t in totals], [t - t // 2 for t in totals]]
        first, second = halves if mode == "SAME_UPPER" else halves[::-1]
        return [*first, *second]


class Erf(OpRun):
    """ONNX's reference computes it in float32."""

    def _run(self, x):
        import torch

        return (torch.erf(torch.tensor(x)).numpy(),)


class Gelu(OpRun):
    """As Erf."""

    def _run(self, x, approximate=None):
        import torch

        return (torch.nn.functional.gelu(torch.tensor(x), approximate=approximate).numpy(),)


def close(actual: NDArray[Any], expected: NDArray[Any], tolerance: float, what: str) -> None:
    """Assert equality relative to the largest expected magnitude (at least one)."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    error = float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0)) / scale
    assert error <= tolerance, f"{what}: error {error:.3g} above {tolerance:.3g}"


def run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """Run a model: in ONNX Runtime, or in the reference where it lacks a float64 kernel."""
    names = [o.name for o in model.graph.output]
    wanted = {i.name for i in model.graph.input}
    feeds = {name: array for name, array in feeds.items() if name in wanted}
    try:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(model.SerializeToString(), options)
    except Exception as cause:
        if not any(reason in str(cause) for reason in ("NOT_IMPLEMENTED", "tensor(double)")):
            raise
        evaluator = ReferenceEvaluator(model, new_ops=[Conv, ConvTranspose, MaxPool, Erf, Gelu])
        return dict(zip(names, evaluator.run(None, feeds), strict=True))
    return dict(zip(names, session.run(None, feeds), strict=True))


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph
    for info in [*graph.input, *graph.output]:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for tensor in graph.initializer:
        _tensor_to_double(tensor)
    for node in graph.node:
        if node.op_type in ("Resize", "Upsample"):  # scales and roi stay float32
            continue
        if node.op_type == "GroupNormalization":
            node.attribute.append(onnx.helper.make_attribute("stash_type", TensorProto.DOUBLE))
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensor_to_double(attribute.t)
            if (
                node.op_type == "Cast"
                and attribute.name == "to"
                and attribute.i == TensorProto.FLOAT
            ):
                attribute.i = TensorProto.DOUBLE
    return _scales_stay_float(model, double)


def _tensor_to_double(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _scales_stay_float(model: onnx.ModelProto, double: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs of Resize beyond the first are float32 by the standard."""
    fixed = {
        n for d in double.graph.node if d.op_type in ("Resize", "Upsample") for n in d.input[1:]
    }
    original = {t.name: t for t in model.graph.initializer}
    for tensor in double.graph.initializer:
        if tensor.name in fixed:
            tensor.CopyFrom(original[tensor.name])
    return double


def random_inputs(
    model: onnx.ModelProto, sizes: Mapping[str, int], given: Mapping[str, NDArray[Any]], seed: int
) -> Arrays:
    """Standard normal values for floating inputs that are not given; symbolic sizes by name."""
    rng = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    feeds: Arrays = {}
    for info in model.graph.input:
        if info.name in constants:
            continue
        tensor = info.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else sizes[d.dim_param] for d in tensor.shape.dim
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if info.name in given:
            feeds[info.name] = np.asarray(given[info.name])
        else:
            feeds[info.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return feeds


def random_cotangents(model: onnx.ModelProto, values: Arrays, seed: int) -> Arrays:
    """A standard normal cotangent for each `ct_` input of a fused graph."""
    rng = np.random.default_rng(seed + 1)
    names = [i.name for i in model.graph.input if i.name.startswith("ct_")]
    return {
        name: np.asarray(rng.standard_normal(values[name[3:]].shape)).astype(values[name[3:]].dtype)
        for name in names
    }


def check_standard(model: onnx.ModelProto) -> None:
    """Every node is of the default domain, no two nodes are equal and none is dead."""
    onnx.checker.check_model(model, full_check=True)
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    assert not model.functions
    keys = [
        (n.op_type, tuple(n.input), str(sorted(map(str, n.attribute)))) for n in model.graph.node
    ]
    outputs = {o.name for o in model.graph.output}
    doubled = {
        key for key, node in zip(keys, model.graph.node, strict=True)
        if keys.count(key) > 1 and not outputs.intersection(node.output)
    }  # fmt: skip
    assert not doubled, f"duplicate nodes: {doubled}"
    read = outputs.union(*(n.input for n in model.graph.node))
    dead = [n.name for n in model.graph.node if not read.intersection(n.output)]
    assert not dead, f"dead nodes: {dead}"


def check_pair(result: Differentiated, feeds: Arrays, cotangents: Arrays, fused: Arrays) -> None:
    """forward then backward gives what fused gives; the kept tensors are what the report says."""
    there = run(result.forward, feeds)
    kept = {}
    for tensor in result.report.kept:
        constants = {t.name for t in result.forward.graph.initializer}
        if tensor.source == "input" and tensor.name in constants and tensor.name not in feeds:
            continue
        kept[tensor.name] = (feeds if tensor.source == "input" else there)[tensor.name]
        assert str(kept[tensor.name].dtype) == tensor.dtype
    back = run(result.backward, {**kept, **cotangents})
    for name, value in {**there, **back}.items():
        if name in fused:
            close(
                value, fused[name], FLOAT32_TOLERANCE, f"forward and backward against fused, {name}"
            )


def check_differences(
    model: onnx.ModelProto,
    feeds: Arrays,
    wrt: Sequence[str],
    outputs: Sequence[str] | None,
    seed: int,
) -> None:
    """Gradients in float64 against central differences along random directions."""
    double = to_double(model)
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    for tensor in double.graph.initializer:
        if tensor.name in wrt:
            wide.setdefault(tensor.name, numpy_helper.to_array(tensor))
    result = differentiate(double, wrt, outputs)
    # Only the graph `forward` takes initialisers as inputs: it serves as the function here.
    cotangents = random_cotangents(result.fused, run(result.forward, wide), seed)
    grads = run(result.fused, {**wide, **cotangents})
    rng = np.random.default_rng(seed + 2)
    for name in wrt:
        for _ in range(2):
            direction = np.asarray(rng.standard_normal(wide[name].shape))
            ahead, behind = (
                run(
                    result.forward, {**wide, name: np.asarray(wide[name] + sign * STEP * direction)}
                )
                for sign in (1, -1)
            )
            expected = sum(
                float(np.vdot(ct, ahead[c[3:]] - behind[c[3:]])) / (2 * STEP)
                for c, ct in cotangents.items()
            )
            actual = float(np.vdot(grads[f"grad_{name}"], direction))
            close(
                np.array(actual), np.array(expected), DIFFERENCE_TOLERANCE, f"differences, {name}"
            )


def check_torch(
    function: Callable[..., Any],
    feeds: Arrays,
    cotangents: Arrays,
    fused: Arrays,
    wrt: Sequence[str],
) -> None:
    """Gradients in float32 against torch autograd; `function` takes the inputs by name."""
    import torch

    tensors = {n: torch.tensor(a, requires_grad=n in wrt) for n, a in feeds.items()}
    results = function(**tensors)
    results = results if isinstance(results, tuple) else (results,)
    pairs = [
        (r, torch.tensor(ct)) for r, ct in zip(results, cotangents.values(), strict=True)
    ]  # fmt: skip
    for (name, _), (value, _) in zip(cotangents.items(), pairs, strict=True):
        close(fused[name[3:]], value.detach().numpy(), FLOAT32_TOLERANCE, f"value of {name[3:]}")
    torch.autograd.backward([v for v, _ in pairs], [c for _, c in pairs])
    for name in wrt:
        grad = tensors[name].grad
        expected = np.zeros_like(feeds[name]) if grad is None else grad.numpy()
        close(fused[f"grad_{name}"], expected, FLOAT32_TOLERANCE, f"torch, gradient of {name}")


@pytest.fixture
def check_gradients() -> Callable[..., Differentiated]:
    """The check itself; call it as

        check_gradients(model, function, wrt=["x"], sizes={"N": 3}, inputs={"i": indices})

    Args:
        model: ONNX text (see onnx.parser) or a float32 ModelProto.
        torch function: the same function in torch, called with the inputs of the model (and the
            initialisers named in `wrt`) by name; returns the differentiated outputs in order. None
            where torch has no counterpart.
        wrt: what to differentiate with respect to; None: every floating input.
        outputs: which outputs to differentiate; None: every floating one.
        inputs: values of inputs; floating ones that are left out are standard normal. Integer
            inputs must be given.
        sizes: value of each symbolic dimension of the inputs.
        differences: whether to compare with central differences (off where the function jumps).
    Returns: the float32 result, for assertions on nodes and report.

    Checked are: (1) float64 gradients against central differences along random directions; (2) the
    fused float32 graph in ONNX Runtime against torch autograd, values and gradients; (3) forward
    followed by backward against fused; (4) standard operators only, no duplicate, no dead nodes.
    """

    def check(
        model: str | onnx.ModelProto,
        function: Callable[..., Any] | None = None,
        *,
        wrt: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        sizes: Mapping[str, int] | None = None,
        differences: bool = True,
        seed: int = 0,
    ) -> Differentiated:
        proto = parser.parse_model(model) if isinstance(model, str) else model
        result = differentiate(proto, wrt, outputs)
        for graph in (result.forward, result.backward, result.fused):
            check_standard(graph)
        names = [o.name[5:] for o in result.fused.graph.output if o.name.startswith("grad_")]
        feeds = random_inputs(proto, sizes or {}, inputs or {}, seed)
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                feeds[tensor.name] = numpy_helper.to_array(tensor)
        cotangents = random_cotangents(result.fused, run(result.forward, feeds), seed)
        fused = run(result.fused, {**feeds, **cotangents})
        check_pair(result, feeds, cotangents, fused)
        if function is not None:
            check_torch(function, feeds, cotangents, fused, names)
        if differences:
            check_differences(proto, feeds, names, outputs, seed)
        return result

    return check
