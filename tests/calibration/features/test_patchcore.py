"""PatchCore's collection and bank."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.calibration.features import storage
from unblemish.calibration.features.patchcore import PatchcoreFitter
from unblemish.calibration.features.storage import Rows, Scratch
from unblemish.errors import CalibrationError, ConfigError

Float = NDArray[np.float32]
SMALL = 1 << 16


def features(images: int, seed: int = 0) -> Float:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, 4, 5, 8)).astype(np.float32)


def bank_of(fitter: PatchcoreFitter, stack: Float) -> Float:
    for start in range(0, len(stack), 3):
        fitter.update(stack[start : start + 3])
    found = fitter.finish().statistics["bank"]
    fitter.close()
    return found


@pytest.mark.parametrize("memory", [1 << 20, 100])
def test_rows_keep_what_was_appended_whatever_the_memory(memory: int) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 5)).astype(np.float32) for n in (1, 7, 3, 19)]
    rows = Rows(memory=memory)
    for part in parts:
        rows.append(part)
    assert rows.on_disk == (memory == 100)
    np.testing.assert_array_equal(rows.array(), np.concatenate(parts))
    rows.append(parts[1])
    np.testing.assert_array_equal(rows.array()[-7:], parts[1])
    rows.close()
    rows.close()


def test_scratch_says_so_when_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "posix_fallocate", full, raising=False)
    with pytest.raises(CalibrationError, match=r"No space left on device.*TMPDIR"):
        Scratch().zeros((10, 10))


def test_patchcore_keeps_the_share_asked_for() -> None:
    stack = features(10)
    bank = bank_of(PatchcoreFitter(share=0.1), stack)
    assert bank.shape == (20, 8)
    assert bank.dtype == np.float32
    every = {row.tobytes() for row in stack.reshape(-1, 8)}
    assert {row.tobytes() for row in bank} <= every
    assert len({row.tobytes() for row in bank}) == 20


def test_patchcore_covers_better_than_chance() -> None:
    stack = features(10)
    rows = stack.reshape(-1, 8).astype(np.float64)

    def radius(bank: NDArray[np.float64]) -> float:
        apart = ((rows[:, None] - bank[None]) ** 2).sum(axis=2)
        return float(apart.min(axis=1).max())

    chosen = radius(bank_of(PatchcoreFitter(share=0.15), stack).astype(np.float64))
    rng = np.random.default_rng(0)
    by_chance = [radius(rows[rng.choice(len(rows), 30, replace=False)]) for _ in range(20)]
    assert chosen < min(by_chance)


def test_patchcore_repeats_itself_with_the_same_seed() -> None:
    first, again = (bank_of(PatchcoreFitter(seed=5), features(10)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_patchcore_keeps_everything_when_the_share_is_one() -> None:
    stack = features(3)
    np.testing.assert_array_equal(bank_of(PatchcoreFitter(share=1.0), stack), stack.reshape(-1, 8))


def test_patchcore_thins_and_says_so_when_the_features_exceed_the_memory() -> None:
    stack = features(200)  # 4,000 features of 32 bytes, 128 kB; 1,024 fit into half of 64 kB
    fitter = PatchcoreFitter(largest=100, memory=SMALL)
    for image in stack:
        fitter.update(image[None])
    found = fitter.finish()
    fitter.close()
    assert found.statistics["bank"].shape == (100, 8)
    assert "1024 of 4000" in found.notes[0]


def test_patchcore_refuses_a_bank_larger_than_the_memory() -> None:
    fitter = PatchcoreFitter(share=1.0, memory=SMALL)
    fitter.update(features(200))
    with pytest.raises(CalibrationError, match="--bank"):
        fitter.finish()
    fitter.close()


@pytest.mark.parametrize("images", [0, 1])
def test_patchcore_refuses_too_few_images(images: int) -> None:
    fitter = PatchcoreFitter()
    if images:
        fitter.update(features(images))
    with pytest.raises(CalibrationError, match="2 normal images"):
        fitter.finish()


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.5}, {"largest": 0}])
def test_patchcore_refuses_wrong_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PatchcoreFitter(**settings)  # type: ignore[arg-type]


def test_patchcore_keeps_a_hundredth_but_not_too_few() -> None:
    stack = features(150)  # 3,000 features: a hundredth would be 30
    assert len(bank_of(PatchcoreFitter(), stack)) == 2000
    assert len(bank_of(PatchcoreFitter(), stack[:5])) == 100
