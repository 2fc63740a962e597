"""The score: root mean square of the differences that count."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.runtime.restore import score_of

RESIDUAL = np.array([[[-3.0, 4.0], [-2.0, -2.0], [0.0, 0.0]]], np.float32)  # (1, 3, 2)


@pytest.mark.parametrize(
    ("polarity", "expected"),
    [
        ("both", [np.sqrt(12.5), 2.0, 0.0]),
        ("dark", [np.sqrt(4.5), 2.0, 0.0]),
        ("bright", [np.sqrt(8.0), 0.0, 0.0]),
    ],
)
def test_score_of_counts_the_sign_asked_for(polarity: str, expected: list[float]) -> None:
    score = score_of(RESIDUAL, polarity)
    assert score.dtype == np.float32
    np.testing.assert_allclose(score, [expected], rtol=1e-6)
