"""DLPack capsules by ctypes: what is in one, and making one.

Source: dmlc/dlpack, dlpack.h, version 0 (`DLManagedTensor`), which every library reads.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from unblemish.errors import ShapeError

GPU_KINDS = (2, 13)  # kDLCUDA, kDLCUDAManaged
_CODES = {"i": 0, "u": 1, "f": 2}
_LETTERS = {code: letter for letter, code in _CODES.items()}
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
]

_api = ctypes.pythonapi
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_get = ctypes.pythonapi["PyCapsule_GetPointer"]
_get.restype, _get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
_is = ctypes.pythonapi["PyCapsule_IsValid"]
_is.restype, _is.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]

# What was handed over and not given back yet, by address.
_lent: dict[int, tuple[Any, ...]] = {}


@dataclass(frozen=True)
class Description:
    """A tensor of a capsule; strides in bytes."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    device: tuple[int, int]


def describe(capsule: Any) -> Description:
    """Read a capsule without taking it over: it must be kept while the memory is used.

    Raises: ShapeError for a capsule that was taken over, or for elements that NumPy has not.
    """
    if not _is(id(capsule), _NAME):
        raise ShapeError(
            "a DLPack capsule holds no tensor, or was used before. Ask for a new one with "
            "__dlpack__()."
        )
    managed = ctypes.cast(_get(id(capsule), _NAME), ctypes.POINTER(_Managed)).contents
    t = managed.tensor
    if t.code not in _LETTERS or t.lanes != 1 or t.bits % 8:
        raise ShapeError(
            f"a DLPack tensor has elements of type code {t.code}, {t.bits} bits, {t.lanes} lanes; "
            "the kernels take real and whole numbers of whole bytes."
        )
    dtype = np.dtype(f"{_LETTERS[t.code]}{t.bits // 8}")
    shape = tuple(t.shape[axis] for axis in range(t.ndim))
    strides = tuple(t.strides[axis] * dtype.itemsize for axis in range(t.ndim)) if t.strides else ()
    pointer = int(t.data or 0) + int(t.byte_offset)
    return Description(pointer, shape, dtype, strides, (t.device_type, t.device_id))


def produce(
    pointer: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    strides: tuple[int, ...],
    device: tuple[int, int],
    owner: object,
) -> Any:
    """Make a capsule; `owner` lives until its consumer gives the tensor back."""
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*(step // dtype.itemsize for step in strides))
    managed = _Managed()
    managed.tensor = _Tensor(
        pointer, *device, len(shape), _CODES[dtype.kind], 8 * dtype.itemsize, 1, sizes, steps, 0
    )
    managed.deleter = _DELETER
    address = ctypes.addressof(managed)
    _lent[address] = (managed, sizes, steps, owner)
    return _api.PyCapsule_New(address, _NAME, _DESTRUCTOR)


def _give_back(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


def _end(capsule: int) -> None:
    # Nobody took it over: a consumer renames the capsule and calls the deleter itself.
    if _is(capsule, _NAME):
        _lent.pop(_get(capsule, _NAME), None)


_DELETER = _Deleter(_give_back)
_DESTRUCTOR = _Destructor(_end)


def lent() -> int:
    """How many tensors were handed over and not given back yet."""
    return len(_lent)
