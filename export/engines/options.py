"""How engines are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unblemish.errors import ConfigError

Hardware = Literal["none", "ampere+", "same-capability"]
HARDWARE: tuple[Hardware, ...] = ("none", "ampere+", "same-capability")


@dataclass(frozen=True)
class EngineOptions:
    """Settings of one build.

    Args:
        batch: most items that go through an engine at once; fewer always fit. Searches on the
            device take up to 64.
        usual_batch: what it is tuned for.
        sizes: (height, width) of images that graphs of any size are built for; () for the model's
            and those of the crops that a search cuts from it.
        workspace: bytes of scratch memory a layer may take.
        level: how long TensorRT searches, 0 (quick) to 5 (all it can).
        tf32: let convolutions round float32 operands to 10 bits; float32 is exact without.
        version_compatible: later versions of the same major number load the engines too.
        hardware: other chips that run them, at some cost: 'ampere+' (all since Ampere, no Jetson),
            'same-capability' (of the same compute capability).
        refit: weights may be replaced by weights of the same values (kREFIT_IDENTICAL), which is
            the one kind of refit that leaves results as they are.
        tolerance: relative difference to ONNX Runtime allowed; None by what the graph holds.
        again: build also what is there already.
    """

    batch: int = 64
    usual_batch: int = 4
    sizes: tuple[tuple[int, int], ...] = ()
    workspace: int = 1 << 30
    level: int = 3
    tf32: bool = False
    version_compatible: bool = False
    hardware: Hardware = "none"
    refit: bool = False
    tolerance: float | None = None
    again: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.usual_batch <= self.batch:
            raise ConfigError(
                f"engines are tuned for a batch between 1 and the largest, {self.batch}; got "
                f"{self.usual_batch}."
            )
        if any(min(size) < 1 for size in self.sizes):
            raise ConfigError(f"the sizes of images must be positive; got {self.sizes}.")
        if not 0 <= self.level <= 5:
            raise ConfigError(f"the optimisation level is 0 to 5; got {self.level}.")
        if self.workspace < 1 << 20:
            raise ConfigError(f"the workspace must be 1 MiB or more; got {self.workspace} bytes.")
        if self.hardware not in HARDWARE:
            raise ConfigError(
                f"hardware must be one of {', '.join(HARDWARE)}; got '{self.hardware}'."
            )
