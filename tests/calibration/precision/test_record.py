"""The recorder of feeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unblemish.bundle import Bundle
from unblemish.calibration.precision.record import RecordingBackend, Tape
from unblemish.runtime.backends import open_backend


def test_tape_keeps_an_even_choice() -> None:
    tape = Tape(4)
    for i in range(23):
        tape.add({"z": np.array([i])})
    assert [int(feed["z"][0]) for feed in tape.feeds] == [0, 8, 16]
    few = Tape(4)
    for i in range(3):
        few.add({"z": np.array([i])})
    assert [int(feed["z"][0]) for feed in few.feeds] == [0, 1, 2]


def test_tape_keeps_copies() -> None:
    tape, z = Tape(4), np.zeros(2)
    tape.add({"z": z})
    z += 1
    assert not tape.feeds[0]["z"].any()


def test_recording_backend_writes_forward_feeds_and_changes_nothing(part_bundle: Bundle) -> None:
    plain, backend = open_backend("onnxruntime"), RecordingBackend(open_backend("onnxruntime"))
    assert open_backend(backend) is backend
    files = [str(part_bundle.graph(f"generator_{way}")) for way in ("forward", "backward")]  # type: ignore[arg-type]
    one, two = plain.pair(*files), backend.pair(*files)
    z = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(one.forward({"z": z})["image"], two.forward({"z": z})["image"])
    ct = np.ones((3, 1, 32, 32), np.float32)
    np.testing.assert_array_equal(
        one.backward({"image": ct})["z"], two.backward({"image": ct})["z"]
    )
    assert list(backend.tapes) == [Path(files[0])]
    (feed,) = backend.tapes[Path(files[0])].feeds
    np.testing.assert_array_equal(feed["z"], z)
