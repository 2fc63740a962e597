"""Reading and writing images: colour order, depth, orientation, damage."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from unblemish.errors import SourceError
from unblemish.images import (
    decode_image,
    encode_image,
    list_images,
    read_image,
    video_frames,
    write_image,
)

RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 255


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".webp"])
def test_colour_is_red_green_blue(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"red{suffix}", RED)
    image = read_image(tmp_path / f"red{suffix}")
    assert image.shape == RED.shape
    # WebP is lossy: its red comes back within a few levels.
    np.testing.assert_allclose(image, RED, atol=6 if suffix == ".webp" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_keeps_its_depth(
    tmp_path: Path, rng: np.random.Generator, suffix: str, dtype: type[np.unsignedinteger]
) -> None:
    image = rng.integers(0, np.iinfo(dtype).max, (7, 5), dtype)
    write_image(tmp_path / f"grey{suffix}", image)
    read = read_image(tmp_path / f"grey{suffix}")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


def test_floats_go_through_tiff_unchanged(rng: np.random.Generator) -> None:
    image = rng.standard_normal((9, 4)).astype(np.float32)
    np.testing.assert_array_equal(decode_image(encode_image(image, ".tiff")), image)


def test_floats_are_refused_by_png() -> None:
    with pytest.raises(SourceError, match=r"need a \.tiff file"):
        encode_image(np.zeros((2, 2), np.float32))


def test_masks_are_written_as_0_and_255() -> None:
    mask = np.array([[True, False]])
    np.testing.assert_array_equal(decode_image(encode_image(mask)), [[255, 0]])


def test_alpha_is_dropped(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([RED[..., ::-1], np.full((4, 6), 9, np.uint8)]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RED)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = np.zeros((16, 32), np.uint8)
    image[:, :16] = 255  # white on the left
    done, buffer = cv2.imencode(".jpg", image)
    assert done
    content = bytes(buffer)
    # One TIFF directory with one entry: orientation (0x0112) = 6, turn clockwise by 90 degrees.
    tiff = b"II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "turned.jpg").write_bytes(content[:2] + segment + content[2:])
    turned = read_image(tmp_path / "turned.jpg")
    assert turned.shape == (32, 16)
    assert turned[:8].mean() > 250
    assert turned[-8:].mean() < 5


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm", ".jp2"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused(
    tmp_path: Path, rng: np.random.Generator, suffix: str, share: float
) -> None:
    content = encode_image(rng.integers(0, 255, (40, 50, 3), np.uint8), suffix)
    path = tmp_path / f"part{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SourceError, match="cannot read"):
        read_image(path)


def test_a_jpeg_whose_thumbnail_is_whole_is_still_truncated(rng: np.random.Generator) -> None:
    content = encode_image(rng.integers(0, 255, (40, 50), np.uint8), ".jpg")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 4) + b"\xff\xd8\xff\xd9"
    with pytest.raises(SourceError, match="JPEG is truncated"):
        decode_image((content[:2] + thumbnail + content[2:])[:-30])


def test_integers_of_other_sizes_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.tiff"), np.zeros((3, 3), np.int32))
    with pytest.raises(SourceError, match="pixels of type int32"):
        read_image(tmp_path / "deep.tiff")


def test_listing_goes_deep_sorts_and_skips_the_hidden(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.JPG", "b/.hidden.png", ".git/3.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list_images(tmp_path) == [tmp_path / "a/1.JPG", tmp_path / "b/2.png"]


def test_listing_keeps_a_named_file_whatever_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "scan.dat").write_bytes(b"x")
    assert list_images([tmp_path / "scan.dat"]) == [tmp_path / "scan.dat"]


def test_writing_replaces_a_file_whole(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", RED)
    before = (tmp_path / "x.png").read_bytes()
    with pytest.raises(SourceError):
        write_image(tmp_path / "x.png", np.zeros((2, 2, 2, 2), np.uint8))
    assert (tmp_path / "x.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for level in range(frames):
        writer.write(np.full((64, 64, 3), level, np.uint8))
    writer.release()


def test_video_frames_come_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "belt.avi", 12)
    levels = [float(frame.mean()) for frame in video_frames(tmp_path / "belt.avi")]
    np.testing.assert_allclose(levels, range(12), atol=3)  # MJPEG is lossy


def test_a_truncated_video_ends_with_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "belt.avi", 40)
    content = (tmp_path / "belt.avi").read_bytes()
    (tmp_path / "belt.avi").write_bytes(content[: len(content) // 2])
    frames = video_frames(tmp_path / "belt.avi")
    next(frames)
    with pytest.raises(SourceError, match=r"breaks off: \d+ of 40 frames"):
        list(frames)
