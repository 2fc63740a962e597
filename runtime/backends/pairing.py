"""What engine families share: checking feeds, and joining a forward graph with its way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from unblemish.errors import BackendError, ShapeError
from unblemish.runtime.backends.protocol import Array, TensorSpec

_PLACES = ("Exception from", "Check 'false' failed at", "Loading input model")


class Interface(Protocol):
    """Anything with named inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Wiring:
    """Which tensor of the forward graph feeds which input of the backward graph.

    Args:
        outputs: outputs of the forward graph that are not merely kept for the way back.
        kept: names that both graphs know: outputs, or inputs, of the forward graph.
        cotangents: outputs whose `ct_<output>` the backward graph reads.
        gradients: output of the backward graph -> name of the input it differentiates by.
    """

    outputs: tuple[TensorSpec, ...]
    kept: tuple[str, ...]
    cotangents: tuple[str, ...]
    gradients: dict[str, str]

    def feeds(self, last: Mapping[str, Array], cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs of the backward graph.

        Raises: ShapeError where a cotangent is missing or has another shape than its output.
        """
        return {name: last[name] for name in self.kept} | self.cotangent_feeds(last, cotangents)

    def cotangent_feeds(
        self, last: Mapping[str, Array], cotangents: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Inputs of the backward graph that do not come from the forward graph.

        Raises: ShapeError where a cotangent is missing or has another shape than its output.
        """
        feeds = {}
        for name in self.cotangents:
            if name not in cotangents:
                raise ShapeError(f"backward needs the cotangent of output '{name}'.")
            have, want = cotangents[name].shape, last[name].shape
            if have != want:
                raise ShapeError(f"the cotangent of '{name}' must have shape {want}; got {have}.")
            feeds[f"ct_{name}"] = cotangents[name]
        return feeds


def wire(forward: Interface, backward: Interface) -> Wiring:
    """Join two graphs made by `unblemish.export.differentiate`.

    Raises: BackendError where the backward graph reads something the forward graph does not give.
    """
    wanted = {spec.name for spec in backward.inputs}
    produced = {spec.name for spec in (*forward.inputs, *forward.outputs)}
    cotangents = tuple(s.name for s in forward.outputs if f"ct_{s.name}" in wanted)
    missing = wanted - produced - {f"ct_{name}" for name in cotangents}
    if missing or not cotangents:
        raise BackendError(
            "forward and backward graph do not belong together: the backward graph wants "
            f"{', '.join(sorted(wanted))}, the forward graph gives {', '.join(sorted(produced))}. "
            "Export the bundle again."
        )
    return Wiring(
        outputs=tuple(s for s in forward.outputs if s.name in cotangents or s.name not in wanted),
        kept=tuple(sorted(wanted & produced)),
        cotangents=cotangents,
        gradients={spec.name: spec.name.removeprefix("grad_") for spec in backward.outputs},
    )


def check_feed(spec: TensorSpec, array: Array) -> None:
    """Raise ShapeError where `array` has another dtype or shape than `spec` states."""
    if array.dtype != spec.dtype:
        raise ShapeError(f"input '{spec.name}' must be {spec.dtype}; got {array.dtype}.")
    fits = array.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == have
        for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ShapeError(f"input '{spec.name}' must have shape {spec.shape}; got {array.shape}.")


def first_line(error: Exception) -> str:
    """The first line of an engine's message that tells more than a place in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        _, found, operators = line.partition("Conversion is failed for: ")  # OpenVINO
        if found:
            return f"it cannot convert {operators}"
    telling = [line for line in lines if not line.startswith(_PLACES)]
    return (telling or lines or [type(error).__name__])[0].rstrip(".: ")
