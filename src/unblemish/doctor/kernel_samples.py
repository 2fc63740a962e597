"""Small arguments for every method of the `Kernels` protocol, by the names of its parameters."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels import Kernels

_BATCH, _CHANNELS, _HEIGHT, _WIDTH = _IMAGE = (2, 3, 5, 7)
_PLANES = (_BATCH, 1, _HEIGHT, _WIDTH)
_CELLS, _FEATURES, _RANK, _ROWS, _KEPT = 4, 6, 2, 9, 3
_FRAME = (_BATCH, _CELLS, _FEATURES)

_SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("x", "g", "n", "start", "pulled", "direct", "restored", "first", "second", "slope",
         "previous", "gradient", "shared", "cotangent", "p", "grad", "m", "v"), _IMAGE),
    **dict.fromkeys(("mask", "mask_gradient", "log_scale", "log_scale_cotangent"), _PLANES),
    "dissimilarity": _PLANES,
    **dict.fromkeys(("lam", "scale", "weight", "rate"), (_BATCH,)),
    "means": (2, _CHANNELS),
    "precisions": (2, _CHANNELS, _CHANNELS),
    "f": _FRAME,
    "mean": (_CELLS, _FEATURES),
    "whitening": (_CELLS, _FEATURES * (_FEATURES + 1) // 2),
    "basis": (_CELLS, _FEATURES, _RANK),
    "inverse_variance": (_CELLS,),
    "scores": (_BATCH, _CELLS),
    "queries": (_CELLS, _FEATURES),
    "bank": (_ROWS, _FEATURES),
    "distances": (_CELLS, _KEPT),
}  # fmt: skip
_SUMS = ("objective", "value", "squared", "largest", "l1", "squared_change", "largest_change")
_SETTINGS = {
    "step": 2, "lr": 0.1, "epsilon": 1e-3, "radius": 1, "sigma_space": 2.0, "sigma_colour": 3.0,
    "clip": 0.5, "lower": 0.0, "upper": 1.0, "floor": 0.1, "data_range": 1.0,
}  # fmt: skip
_OF_FEATURES = {"mahalanobis", "mahalanobis_low_rank", "nearest_candidate"}


def methods() -> list[str]:
    """Names of all methods of the protocol."""
    return [name for name, _ in inspect.getmembers(Kernels, inspect.isfunction) if name[0] != "_"]


def run(kernels: Kernels, method: str) -> list[NDArray[Any]]:
    """Call a method; what all its arrays then hold, and what it returned.

    Raises: KeyError for a parameter that has no sample.
    """
    parameters = inspect.signature(getattr(Kernels, method)).parameters.values()
    given = {
        p.name: _sample(method, p.name)
        for p in parameters
        if p.name != "self" and p.default is p.empty
    }
    returned = getattr(kernels, method)(**given)
    arrays = [value for value in given.values() if isinstance(value, np.ndarray)]
    return arrays if returned is None else [*arrays, np.asarray(returned)]


def _sample(method: str, name: str) -> Any:
    if method == "project_ball":
        return _random(name, (_BATCH,) if name == "radius" else (_BATCH, 33))
    if name == "cotangent" and method in _OF_FEATURES:
        return _random(name, _FRAME)
    if name in _SETTINGS:
        return _SETTINGS[name]
    if name in _SUMS:
        return np.ones(_BATCH)
    return _counted(name) if name not in _SHAPES else _random(name, _SHAPES[name])


def _random(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    seed = sum(name.encode())
    return np.random.default_rng(seed).uniform(0.1, 1.0, shape).astype(np.float32)


def _counted(name: str) -> NDArray[Any]:
    """What is no float32."""
    places = np.arange(_BATCH * _CELLS).reshape(_BATCH, _CELLS)
    made: dict[str, Any] = {
        "free": np.arange(_BATCH * _HEIGHT * _WIDTH, dtype=np.uint8).reshape(_PLANES) % 2,
        "weights": _random(name, (_BATCH, 9, _HEIGHT, _WIDTH)).astype(np.float16),
        "cells": (places % _CELLS - (places == 1)).astype(np.int32),
        "candidates": np.stack([places, places + 1, 0 * places - 1], axis=-1).astype(np.int32),
        "chosen": np.zeros((_BATCH, _CELLS), np.int32),
        "index": np.zeros((_CELLS, _KEPT), np.int32),
    }
    array: NDArray[Any] = made[name]
    return array
