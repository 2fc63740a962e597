"""Rules of `activation.py` against torch autograd and central differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def hard_sigmoid(x, alpha=0.2, beta=0.5):
    return torch.clamp(alpha * x + beta, 0, 1)


@pytest.mark.parametrize(("op", "function"), [
    ("Relu(x)", F.relu),
    ("LeakyRelu(x)", lambda x: F.leaky_relu(x, 0.01)),
    ("LeakyRelu<alpha = 0.2>(x)", lambda x: F.leaky_relu(x, 0.2)),
    ("ThresholdedRelu(x)", lambda x: torch.where(x > 1, x, 0.0)),
    ("ThresholdedRelu<alpha = 0.3>(x)", lambda x: torch.where(x > 0.3, x, 0.0)),
    ("Elu(x)", F.elu),
    ("Elu<alpha = 1.7>(x)", lambda x: F.elu(x, 1.7)),
    ("Selu(x)", F.selu),
    ("Selu<alpha = 1.5, gamma = 0.9>(x)",
     lambda x: 0.9 * torch.where(x > 0, x, 1.5 * (x.exp() - 1))),
    ("Celu(x)", F.celu),
    ("Celu<alpha = 0.6>(x)", lambda x: F.celu(x, 0.6)),
    ("Sigmoid(x)", torch.sigmoid),
    ("Tanh(x)", torch.tanh),
    ("HardSigmoid(x)", hard_sigmoid),
    ("HardSigmoid<alpha = 0.5, beta = 0.4>(x)", lambda x: hard_sigmoid(x, 0.5, 0.4)),
    ("Gelu(x)", F.gelu),
    ('Gelu<approximate = "tanh">(x)', lambda x: F.gelu(x, approximate="tanh")),
    ("Mish(x)", F.mish),
    ("Softplus(x)", F.softplus),
    ("Softsign(x)", F.softsign),
])  # fmt: skip
@pytest.mark.parametrize("shape", ["1", "3,19", "2,3,5,7"])
def test_activation_gradient_equals_torch(op, function, shape, check_gradients):
    model = f"{HEAD} g (float[{shape}] x) => (float[{shape}] y) {{ y = {op} }}"
    check_gradients(model, lambda x: function(x))


def test_hard_swish_gradient_equals_torch_on_all_three_pieces(check_gradients):
    model = f"""{HEAD} g (float[3,19] x) => (float[3,19] y) <float three = {{3}}>
        {{ a = Mul(x, three) y = HardSwish(a) }}"""
    check_gradients(model, lambda x: F.hardswish(3 * x))


@pytest.mark.parametrize("slope", ["1", "4,1,1", "1,1,1", "5,7"])
def test_prelu_gradient_equals_torch_for_input_and_slope(slope, check_gradients):
    model = f"""{HEAD} g (float[N,4,5,7] x, float[{slope}] a) => (float[N,4,5,7] y)
        {{ y = PRelu(x, a) }}"""
    check_gradients(model, lambda x, a: torch.where(x > 0, x, a * x), sizes={"N": 3})


def test_operators_without_a_rule_are_expanded_by_their_definition(check_gradients):
    def normalised(x):
        mean = x.mean((0, 2, 3), keepdim=True)
        return (x - mean) / (((x**2).mean((0, 2, 3), keepdim=True) - mean**2).sqrt() + 1e-9)

    model = f"""{HEAD} g (float[2,3,4,5] x) => (float[2,3,4,5] y)
        {{ y = MeanVarianceNormalization(x) }}"""
    # The standard's definition holds float32 constants: there is no float64 form to compare with.
    result = check_gradients(model, normalised, differences=False)
    assert result.report.expanded == ("MeanVarianceNormalization",)
