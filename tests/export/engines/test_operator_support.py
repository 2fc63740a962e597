"""The list of operators as data, and that a graph TensorRT would refuse is refused by name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from unblemish.errors import UnsupportedOperatorError
from unblemish.export.engines.lower_opset import lower_opset
from unblemish.export.engines.operator_support import (
    SUPPORTED_VERSIONS,
    check_operators,
    operator_table,
)

OLD, MID, NEW = SUPPORTED_VERSIONS


def model(body: str, opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]>\n{body}')


def test_tables_state_version_and_source() -> None:
    for version in SUPPORTED_VERSIONS:
        table = operator_table(version)
        assert table.version == version
        assert "onnx-tensorrt" in table.source
        assert len(table.operators) > 190
    assert operator_table(OLD).opsets == (9, 20)
    assert operator_table((10, 3)) is operator_table(OLD)
    assert operator_table((10, 16)) is operator_table(MID)
    assert operator_table((11, 4)) is operator_table(NEW)
    with pytest.raises(UnsupportedOperatorError, match=r"older than 10\.0"):
        operator_table((8, 6))


def test_tables_hold_what_the_documentation_says() -> None:
    # Read off the documentation, not off the file.
    assert operator_table(OLD).operators["Conv"] == {"float32", "float16", "bfloat16"}
    assert operator_table(OLD).operators["NonZero"] == {"float32", "float16"}
    assert operator_table(OLD).operators["Where"] == {
        "float32", "float16", "bfloat16", "int32", "int64", "bool",
    }  # fmt: skip
    assert operator_table(OLD).operators["Col2Im"] is None
    assert "Swish" not in operator_table(MID).operators
    assert operator_table(NEW).operators["Swish"] is not None
    assert operator_table(OLD).operators["STFT"] is None
    assert operator_table(MID).operators["STFT"] == {"float32"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("g (float[2,6] x) => (y) { y = Det(x) }", r"Det.*not supported"),
        ("g (double[2,6] x) => (y) { y = Relu(x) }", r"Relu.*double, expected one of"),
        ("g (bool[2,6] x) => (y) { y = NonZero(x) }", r"NonZero.*is bool"),
        ("g (bool[2,6] x, bool[2,6] z) => (y) { y = Equal(x, z) }", r"Equal.*is bool"),
        ("g (float[2,6] x, int64[1] a) => (y) { y = ReduceSum(x, a) }", r"axes must be constant"),
        (
            "g (float[2,3,4,4] x) => (y, i) { y, i = MaxPool<kernel_shape = [2, 2]>(x) }",
            r"MaxPool.*further outputs \(i\)",
        ),
        (
            "g (float[2,3,4] x) => (y) { y = MaxPool<kernel_shape = [2]>(x) }",
            r"two or three spatial axes, found data of rank 3",
        ),
        (
            "g (float[2,3,4,4] x, float[n,3,1,1] w) => (y) { y = Conv(x, w) }",
            r"shape of its kernel must be known",
        ),
        (
            "g (float[2,3,4,4] x) => (y) <float[4] s = {1, 1, 2, 2}> "
            '{ y = Resize<mode = "cubic">(x, , s) }',
            r"Resize.*mode 'cubic' is not supported",
        ),
        (
            "g (float[2,3] x, int64[1,1] i, float[1,3] u) => (y) "
            '{ y = ScatterND<reduction = "add">(x, i, u) }',
            r"ScatterND.*reduction 'add'",
        ),
        ("g (float[n,3,1] x) => (y) { y = Squeeze(x) }", r"axes must be given"),
    ],
)
def test_what_would_be_refused_is_refused_by_name(body: str, reason: str) -> None:
    for version in SUPPORTED_VERSIONS:
        with pytest.raises(UnsupportedOperatorError, match=reason) as caught:
            check_operators(model(body), "features_backward", [version])
        assert "features_backward" in str(caught.value)
        assert f"TensorRT {version[0]}.{version[1]}" in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "g (float[2,6] x) => (y) { a = Constant<value_ints = [1]>() y = ReduceSum(x, a) }",
        "g (float[n,3,1] x) => (y) { a = Constant<value_ints = [2]>() y = Squeeze(x, a) }",
        "g (bool[2] c, float[2] x, float[2] z) => (y) { y = Where(c, x, z) }",
        "g (float[n,3,4,4] x) => (y) <float[5,3,1,1] w> { y = Conv(x, w) }",
    ],
)
def test_what_is_taken_passes(body: str) -> None:
    made = model(body)
    if made.graph.initializer:
        made.graph.initializer[0].raw_data = bytes(4 * 15)
    check_operators(made, "generator")


def test_axes_of_slices_may_be_computed_in_later_versions() -> None:
    body = "g (float[2,6] x, int64[1] s, int64[1] e, int64[1] a) => (y) { y = Slice(x, s, e, a) }"
    check_operators(model(body), "g", [MID, NEW])
    with pytest.raises(UnsupportedOperatorError, match="axes must be constant"):
        check_operators(model(body), "g", [OLD])


def test_foreign_domains_are_refused() -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20, "com.vendor": 1]>\n'
        "g (float[2] x) => (float[2] y) { y = com.vendor.Thing(x) }"
    )
    with pytest.raises(UnsupportedOperatorError, match=r"Thing.*domain 'com\.vendor'"):
        check_operators(made, "g", [NEW])


def test_opset_21_is_relabelled_for_the_oldest_versions() -> None:
    made = model("g (float[2,6] x) => (y) { y = Relu(x) }", opset=21)
    with pytest.raises(UnsupportedOperatorError, match="its opset is 21, expected 9 to 20"):
        check_operators(made, "g", [OLD])
    lowered = lower_opset(made, 20)
    assert lowered.changed == 1
    check_operators(lowered.model, "g")
    assert lower_opset(made, 24).changed == 0
    assert made.opset_import[0].version == 21


def test_what_changed_its_meaning_is_not_relabelled() -> None:
    made = model(
        "g (float[2,6,4] x, float[6] s, float[6] b) => (y) "
        "{ y = GroupNormalization<num_groups = 3>(x, s, b) }",
        opset=21,
    )
    with pytest.raises(UnsupportedOperatorError, match=r"GroupNormalization.*something else"):
        lower_opset(made, 20)


def test_list_lies_beside_the_code() -> None:
    import unblemish.export.engines as room

    assert (Path(room.__file__).parent / "operator_support.json").is_file()
