"""What the parts of `CudaKernels` share."""

from __future__ import annotations

from typing import Any

from unblemish.kernels.cuda.device import Device


class Part:
    """Methods of the protocol on a device. `CudaKernels` makes the device."""

    device: Device

    def _arrays(self, **arrays: Any) -> dict[str, Any]:
        """Foreign device arrays seen as ours; NumPy arrays and None as they are."""
        return {name: self.device.view(array) for name, array in arrays.items()}


def planes(image: tuple[int, ...], mask: tuple[int, ...] | None = None) -> dict[str, int]:
    """Sizes as the kernels take them: with a mask per element every element is a pixel."""
    batch, channels, height, width = image
    if mask is not None and mask[1] == channels:
        return {"batch": batch, "channels": 1, "plane": channels * height * width}
    return {"batch": batch, "channels": channels, "plane": height * width}


def sides(image: tuple[int, ...]) -> dict[str, int]:
    """Sizes of kernels that know rows from columns."""
    return dict(zip(("batch", "channels", "height", "width"), image, strict=True))
