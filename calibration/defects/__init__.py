"""Synthetic defects with exact masks, pasted on normal images."""

from unblemish.calibration.defects.fills import FILLS, Fill
from unblemish.calibration.defects.paste import SyntheticDefect, paste_defect
from unblemish.calibration.defects.shapes import SHAPES, Shape, draw_shape

__all__ = ["FILLS", "SHAPES", "Fill", "Shape", "SyntheticDefect", "draw_shape", "paste_defect"]
