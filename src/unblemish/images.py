"""Images and videos on disk. Inside the package colour is RGB, and grey has no channel axis."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.errors import SourceError
from unblemish.files import write_atomic

Image = NDArray[Any]

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".jp2"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
)

# Some containers state no number of frames, only a length that it is estimated from.
_VIDEO_SHARE = 0.98

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# EXIF orientation is applied (neither IMREAD_UNCHANGED nor IGNORE_ORIENTATION), alpha is dropped.
_FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR


def list_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List image files, sorted: a file is itself, a folder the images in it at any depth.

    Hidden files and folders are left out. A file that is named is kept whatever its suffix.
    Raises: SourceError where a path does not exist or a folder holds no image.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[Path] = []
    for item in map(Path, paths):
        found += _images_in(item) if item.is_dir() else [_existing(item)]
    return found


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image as it was taken: (H, W) grey or (H, W, 3) RGB; uint8, uint16 or float32.

    The EXIF orientation is applied, an alpha channel is dropped, a palette becomes colour. The
    caller owns the array.
    Raises: SourceError where the file is missing, unreadable, empty, truncated, damaged, no image,
    of a pixel type other than the three, or has pixels that are not finite.
    """
    path = _existing(Path(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}.") from error
    return decode_image(content, str(path))


def decode_image(content: bytes, name: str = "the image") -> Image:
    """Decode the content of an image file; see `read_image`. `name` is what errors call it."""
    damage = _damage(content)
    if damage:
        raise SourceError(f"cannot read {name}: {damage}. Copy the file again, or leave it out.")
    return _checked(name, _decode(content))


def write_image(path: str | os.PathLike[str], image: Image) -> None:
    """Write `image` atomically in the format of the suffix; bool becomes 0 and 255.

    Args:
        image: (H, W) or (H, W, 3) RGB; bool, uint8, uint16, or float32 (TIFF only).
    Raises: SourceError where the format cannot hold the image or the file cannot be written.
    """
    path = Path(path)
    write_atomic(path, encode_image(image, path.suffix))


def encode_image(image: Image, suffix: str = ".png") -> bytes:
    """Return the file content of `image` in the format of `suffix`; see `write_image`."""
    pixels = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    if np.issubdtype(pixels.dtype, np.floating) and suffix.lower() not in {".tif", ".tiff"}:
        raise SourceError(f"floating-point pixels need a .tiff file; '{suffix}' was asked for.")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    try:
        done, buffer = cv2.imencode(suffix, np.ascontiguousarray(pixels))
    except cv2.error as error:
        raise SourceError(f"cannot write {image.dtype} {image.shape} as '{suffix}'.") from error
    if not done:
        raise SourceError(f"cannot write {image.dtype} {image.shape} as '{suffix}'.")
    return bytes(buffer)


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the file name is that of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def video_frames(path: str | os.PathLike[str]) -> Iterator[Image]:
    """Yield the frames of a video in order, each (H, W, 3) RGB uint8 and owned by the caller.

    Raises: SourceError where the file is missing or not one frame can be decoded; after the last
    frame, where the file states clearly more frames than that.
    """
    path = _existing(Path(path))
    capture = cv2.VideoCapture(str(path))
    try:
        more, frame = capture.read() if capture.isOpened() else (False, None)
        if not more:
            raise SourceError(
                f"cannot read {path}: no frame could be decoded. "
                "The file is damaged, or its codec is unknown to this build of OpenCV."
            )
        count, stated = 0, capture.get(cv2.CAP_PROP_FRAME_COUNT)
        while more:
            count += 1
            yield cv2.cvtColor(np.asarray(frame), cv2.COLOR_BGR2RGB)
            more, frame = capture.read()
        if count < _VIDEO_SHARE * stated - 1:
            raise SourceError(
                f"{path} breaks off: {count} of {stated:.0f} frames could be decoded, the last of "
                "them perhaps in part. The file is truncated or damaged: copy it again."
            )
    finally:
        capture.release()


def _images_in(folder: Path) -> list[Path]:
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not images:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise SourceError(f"no image in {folder}. Looked for: {known}, in sub-folders too.")
    return images


def _existing(path: Path) -> Path:
    if not path.exists():
        raise SourceError(f"{path} does not exist. Check the spelling of the path.")
    if path.is_dir():
        raise SourceError(f"{path} is a folder; an image or video file was expected.")
    return path


def _decode(content: bytes) -> Image | None:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), _FLAGS)
    except cv2.error:  # more pixels than OpenCV's limit, or a header that contradicts itself
        return None
    if image is None or image.ndim == 2:
        return image
    grey = image.shape[2] == 1
    return image[..., 0] if grey else cv2.cvtColor(np.asarray(image), cv2.COLOR_BGR2RGB)


def _checked(name: str, image: Image | None) -> Image:
    if image is None:
        raise SourceError(
            f"cannot read {name}: it is not an image in a known format, or it is damaged. "
            "Expected PNG, JPEG, TIFF, BMP, WebP, PGM/PPM or JPEG 2000."
        )
    if image.dtype == np.float64:
        image = image.astype(np.float32)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise SourceError(
            f"cannot read {name}: pixels of type {image.dtype}; expected uint8, uint16 or float32."
        )
    if image.dtype == np.float32 and not np.isfinite(image).all():
        bad = int(np.count_nonzero(~np.isfinite(image)))
        raise SourceError(
            f"cannot read {name}: {bad} of {image.size} pixels are NaN or infinite. "
            "Replace them before inspection."
        )
    return image


def _damage(content: bytes) -> str | None:
    """Say what is missing from a file that a lenient decoder would fill up with grey."""
    if not content:
        return "the file is empty"
    if content.startswith(_PNG):
        return _png_damage(content)
    if content.startswith(_JPEG):
        return _jpeg_damage(content)
    if content.startswith(b"BM") and len(content) >= 14:
        (stated,) = struct.unpack_from("<I", content, 2)
        if stated > len(content):
            return f"the BMP is truncated: {len(content)} of {stated} bytes"
    return None


def _png_damage(content: bytes) -> str | None:
    position = len(_PNG)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        (stated,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != stated:
            return f"the PNG is damaged: wrong checksum at byte {position}"
        if kind == b"IEND":
            return None
        position = end
    return f"the PNG is truncated: it breaks off after {len(content)} bytes"


def _jpeg_damage(content: bytes) -> str | None:
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:  # the scan: an end-of-image marker cannot occur inside its data
            if content.find(b"\xff\xd9", position) >= 0:
                return None
            break
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return f"the JPEG is truncated: no end of image in {len(content)} bytes"
