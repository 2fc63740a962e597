"""The start n0: a frame with holes, and something normal-looking to fill them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ConfigError, ModelError, ShapeError
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.crops import Box, label_parts

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

INPAINTER: GraphRole = "inpainter"
_LARGEST = 1 << 16  # pixels of a patch that classical inpainting works on; larger ones are reduced
_RADIUS = 3  # px, neighbourhood of the classical methods
_RIM = 8  # px of surroundings that they see
# Flag, and white in the unit that the method works in. On float images Telea's is wrong by the
# whole range in [0, 1] and right in [0, 255]; Navier-Stokes is finest in [0, 1].
_METHODS = {"telea": (cv2.INPAINT_TELEA, 255.0), "navier-stokes": (cv2.INPAINT_NS, 1.0)}


class Inpainter(Protocol):
    """Anything that fills holes."""

    def __call__(self, image: Float, hole: Bool) -> Float:
        """Fill the hole (H, W) of an image (H, W, C) float32 in [0, 1]; a new array."""


class ClassicalInpainter:
    """Fill every hole from its border.

    Holes of more than 256 x 256 pixels are filled at reduced size: the time of the methods grows
    with the pixels, and inside a large hole they only know its border.

    Args:
        method: 'telea' (fast marching) or 'navier-stokes'.
    Source: Telea 2004; Bertalmio et al. 2001. Seed 003, section III-E1, takes a masked
    autoencoder: a rough start is enough, since the search follows.
    """

    def __init__(self, method: str = "telea") -> None:
        if method not in _METHODS:
            raise ConfigError(f"inpainting is one of {', '.join(_METHODS)}; got '{method}'.")
        self._flag, self._white = _METHODS[method]

    def __call__(self, image: Float, hole: Bool) -> Float:
        """See `Inpainter`. A frame that is all hole becomes its median colour."""
        out = np.array(image, np.float32)
        if hole.all():
            out[...] = np.median(image.reshape(-1, image.shape[2]), axis=0)
            return out
        for part in label_parts(hole).items:
            rows, columns = _around(part.box, hole.shape).slices
            patch, inside = image[rows, columns], hole[rows, columns]
            out[rows, columns][inside] = self._patch(patch, inside)[inside]
        return out

    def _patch(self, patch: Float, hole: Bool) -> Float:
        height, width = hole.shape
        factor = float(np.sqrt(_LARGEST / hole.size))
        if factor >= 1:
            return self._fill(patch, hole)
        size = max(round(width * factor), 2), max(round(height * factor), 2)
        # What is known of a mixed pixel is the mean of its known part.
        known = cv2.resize((~hole).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        kept = np.where(hole[:, :, None], np.float32(0), patch)
        mixed = cv2.resize(kept, size, interpolation=cv2.INTER_AREA).reshape(*known.shape, -1)
        small = np.asarray(mixed / np.maximum(known, 1e-6)[:, :, None], np.float32)
        filled = self._fill(small, np.asarray(known < 0.5))
        large = cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(large, np.float32).reshape(patch.shape)

    def _fill(self, patch: Float, hole: Bool) -> Float:
        if hole.all() or not hole.any():
            return patch
        mask = hole.astype(np.uint8)
        scaled = patch * np.float32(self._white)
        planes = [
            cv2.inpaint(np.ascontiguousarray(scaled[:, :, c]), mask, _RADIUS, self._flag)
            for c in range(patch.shape[2])
        ]
        filled = np.stack(planes, axis=2) / np.float32(self._white)
        return np.asarray(np.clip(filled, 0, 1), np.float32)


class OnnxInpainter:
    """A network given by the user, e.g. a masked autoencoder.

    Its graph takes `image` (1, C, h, w) float32 in [0, 1] with fixed h and w, the hole filled with
    0.5, and `mask` (1, 1, h, w) float32, 1 in the hole; its first output is the image restored.
    Frames are brought to its size and back.
    """

    def __init__(self, backend: Backend, path: str) -> None:
        self._program = backend.program(path)
        shapes = {spec.name: spec.shape for spec in self._program.inputs}
        image = shapes.get("image", ())
        if (
            len(image) != 4
            or "mask" not in shapes
            or not all(isinstance(d, int) for d in image[1:])
        ):
            raise ModelError(
                f"{path}: an inpainter takes 'image' (1, C, h, w) with fixed C, h and w and 'mask' "
                f"(1, 1, h, w); this graph takes {shapes}."
            )
        self._shape = (int(image[1]), int(image[2]), int(image[3]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images it takes."""
        return self._shape

    def __call__(self, image: Float, hole: Bool) -> Float:
        """See `Inpainter`."""
        channels, h, w = self._shape
        mask = cv2.resize(hole.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA) > 0
        small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).reshape(h, w, -1)
        if small.shape[2] != channels:
            mean = small.mean(axis=2, keepdims=True)
            small = np.repeat(mean, channels, axis=2)
        feed = np.where(mask[:, :, None], np.float32(0.5), small).transpose(2, 0, 1)[None]
        outputs = self._program.run(
            {
                "image": np.ascontiguousarray(feed, np.float32),
                "mask": mask.astype(np.float32)[None, None],
            }
        )
        found = np.asarray(outputs[self._program.outputs[0].name])
        if found.shape != (1, channels, h, w):
            raise ShapeError(
                f"the inpainter should give an image (1, {channels}, {h}, {w}); it gave "
                f"{found.shape}."
            )
        restored = found[0].transpose(1, 2, 0)
        if restored.shape[2] != image.shape[2]:
            restored = np.repeat(restored.mean(axis=2, keepdims=True), image.shape[2], axis=2)
        return _filled(image, hole, np.ascontiguousarray(restored))


def load_inpainter(bundle: Bundle, backend: Backend) -> Inpainter | None:
    """The inpainter that the bundle brings, or None.

    Raises: BundleError, ModelError or BackendError where it is damaged.
    """
    if INPAINTER not in bundle.manifest.graphs:
        return None
    return OnnxInpainter(backend, str(bundle.graph(INPAINTER)))


class SearchInpainter:
    """What another search restores (our RGI or autoencoder bundles), in the holes only.

    Args:
        restore: frame (H, W, C) in [0, 1] -> the nearest normal image of that shape.
    """

    def __init__(self, restore: Callable[[Float], Float]) -> None:
        self._restore = restore

    def __call__(self, image: Float, hole: Bool) -> Float:
        """See `Inpainter`."""
        return _filled(image, hole, self._restore(image))


def _filled(image: Float, hole: Bool, restored: Float) -> Float:
    """The restored image in the hole, the frame elsewhere."""
    height, width = hole.shape
    if restored.shape[:2] != hole.shape:
        large = cv2.resize(restored, (width, height), interpolation=cv2.INTER_CUBIC)
        restored = np.asarray(large, np.float32)
    clipped = np.clip(restored.reshape(image.shape), 0, 1)
    return np.asarray(np.where(hole[:, :, None], clipped, image), np.float32)


def _around(box: Box, shape: tuple[int, ...]) -> Box:
    """The box with its rim, as far as the image goes; the rim grows with the hole."""
    rim = max(_RIM, max(box.height, box.width) // 4)
    return Box(
        max(box.top - rim, 0),
        max(box.left - rim, 0),
        min(box.bottom + rim, shape[0]),
        min(box.right + rim, shape[1]),
    )
