"""The choice of F2PAD's weights, with an inspector whose masks are best at one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unblemish.bundle import Bundle, Manifest
from unblemish.bundle.manifest import Detector, Mixture, Model, Preprocess
from unblemish.calibration.refinement import choose_weights

BEST_BETA, BEST_COMPONENTS = 0.1, 1


@dataclass
class Inspector:
    """Flags the defect and as many pixels more as its settings are away from the best."""

    bundle: Bundle
    schedule: str = "fast"

    def adopt(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def search(self, frame: Any) -> Any:
        settings = self.bundle.manifest.f2pad
        apart = abs(np.log2(settings.beta / BEST_BETA))
        if self.schedule == "paper":
            apart = abs(np.log2(settings.beta0 / 1e5)) + abs(np.log2(settings.alpha1 / 0.1))
        apart += 0.4 * abs(settings.components - BEST_COMPONENTS)
        mask = frame.astype(np.float32).copy()
        mask.ravel()[: int(20 * apart)] = 1
        return SimpleNamespace(mask=mask)


def bundle(mixtures: int) -> Bundle:
    mixture = Mixture(means=((0.5,),), precisions=(((1.0,),),), weights=(1.0,))
    record = Detector(
        backbone="onnx", layers=("c",), stride=4, align=8, reach=8, channels=1, statistics={},
        mixtures=(mixture,) * mixtures, normals=10, seed=0,
    )  # fmt: skip
    model = Model(kind="onnx", latent_size=0, parameters=1, source="x", source_sha256="0" * 64)
    manifest = Manifest(
        name="x", created_by="test", method="padim", model=model, graphs={}, files={},
        preprocess=Preprocess(width=8, height=8, channels=1, low=0, high=1), detector=record,
    )  # fmt: skip
    return Bundle(Path("x"), manifest)


@pytest.mark.parametrize("mixtures", [0, 1, 3])
def test_the_weights_of_the_best_masks_are_chosen(mixtures: int) -> None:
    samples = []
    for index in range(16):
        truth = np.zeros((32, 32), np.bool_)
        truth[10 : 20 + index % 3, 10:20] = True
        samples.append(SimpleNamespace(image=truth, mask=truth))
    opened, calls = bundle(mixtures), []
    inspector: Any = Inspector(opened)
    chosen = choose_weights(opened, inspector, samples, lambda: calls.append(1))
    assert chosen.manifest.f2pad.beta == BEST_BETA
    if mixtures > 1:
        assert chosen.manifest.f2pad.components == BEST_COMPONENTS
    assert inspector.bundle.manifest == chosen.manifest
    assert chosen.manifest.detector == opened.manifest.detector
    assert calls


def test_the_schedule_says_which_weights_are_chosen() -> None:
    truth = np.zeros((32, 32), np.bool_)
    truth[10:20, 10:20] = True
    samples: Any = [SimpleNamespace(image=truth, mask=truth)] * 8
    inspector: Any = Inspector(bundle(2), "paper")
    chosen = choose_weights(inspector.bundle, inspector, samples, lambda: None).manifest.f2pad
    assert (chosen.beta0, chosen.alpha1, chosen.components) == (1e5, 0.1, 1)
    assert chosen.beta == bundle(2).manifest.f2pad.beta
