"""DLPack capsules: reading those of other libraries and making our own, without either library's help.

A capsule holds a C structure with an address, a shape, strides in elements and an element type. There are
two layouts: the original one and, since version 1.0, one that begins with a version and has flags.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import ArgumentError, DtypeError

__all__ = ["CPU", "CUDA", "CUDA_HOST", "CUDA_MANAGED", "Contents", "make_capsule", "read_capsule"]

#: Kinds of memory in the numbering of DLPack.
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13

_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"
_READ_ONLY = 1  # the lowest bit of the flags
_NEWEST_MAJOR = 1
_BFLOAT = 4
#: Type codes that NumPy has a letter for.
_KINDS = {0: "i", 1: "u", 2: "f"}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _ElementType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("element", _ElementType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


# Prototypes of our own: setting argtypes on ctypes.pythonapi's shared functions would change them for
# every other user of ctypes in the process.
_get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a capsule says. It is valid while the capsule lives and nobody has consumed it."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device_kind: int
    device: int
    writable: bool


def read_capsule(capsule: Any, name: str) -> Contents:
    """The contents of a capsule, which is not consumed: drop it to give the memory back.

    Parameters
    ----------
    capsule : PyCapsule
        What an array's ``__dlpack__`` returned.
    name : str
        What the array is called in a refusal.
    """
    tensor, writable = _open(capsule, name)
    dtype = _numpy_dtype(tensor.element, name)
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        strides = tuple([stride * dtype.itemsize for stride in tensor.strides[: tensor.ndim]])
    else:
        strides = contiguous_strides(shape, dtype.itemsize)
    address = (tensor.data or 0) + tensor.byte_offset
    return Contents(address, shape, strides, dtype, tensor.device.kind, tensor.device.number, writable)


def make_capsule(
    address: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device_kind: int,
    device: int,
    owner: Any,
    *,
    versioned: bool = False,
) -> Any:
    """A capsule over C-contiguous memory that keeps `owner` alive until its consumer is done.

    NumPy makes it, for an array that lies where the device memory lies and is never read, and the fields
    that NumPy cannot know are set afterwards. So the functions that a foreign thread may call to release
    it are NumPy's C code, which takes the interpreter's lock and keeps a pending exception; a callback
    written in Python would run without the latter when a capsule dies while an exception is raised.
    """
    bfloat16 = dtype == ml_dtypes.bfloat16  # NumPy exports no foreign element types
    array = np.asarray(_Memory(address, shape, "<u2" if bfloat16 else dtype.str, owner))
    capsule = array.__dlpack__(max_version=(1, 0) if versioned else None)
    tensor, _ = _open(capsule, "a capsule")
    tensor.device.kind, tensor.device.number = device_kind, device
    if bfloat16:
        tensor.element.code = _BFLOAT
    return capsule


@functools.lru_cache(maxsize=1024)
def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array."""
    strides = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


class _Memory:
    """Memory at an address, for NumPy's array protocol; the array's base, and so what it keeps alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
        }


def _open(capsule: Any, name: str) -> tuple[_Tensor, bool]:
    """The tensor inside a capsule, in place, and whether it may be written."""
    kind = _get_name(capsule)
    if kind == _PLAIN:
        return _Managed.from_address(_get_pointer(capsule, kind)).tensor, True
    if kind != _VERSIONED:
        raise ArgumentError(
            f"{name} as a DLPack capsule named {kind!r}",
            "capsules that nobody has consumed",
            "pass the array itself",
        )
    managed = _ManagedVersioned.from_address(_get_pointer(capsule, kind))
    if managed.major > _NEWEST_MAJOR:  # the layout after the version may be another one
        raise ArgumentError(
            f"{name} as a DLPack capsule of version {managed.major}.{managed.minor}",
            f"DLPack up to version {_NEWEST_MAJOR}",
            "update numba_sparse_attn",
        )
    return managed.tensor, not managed.flags & _READ_ONLY


def _numpy_dtype(element: _ElementType, name: str) -> np.dtype[Any]:
    """The NumPy name of a DLPack element type."""
    code, bits = element.code, element.bits
    if element.lanes == 1 and bits in (8, 16, 32, 64):
        if (code, bits) == (_BFLOAT, 16):
            return np.dtype(ml_dtypes.bfloat16)
        if code in _KINDS and (code, bits) != (2, 8):
            return np.dtype(f"{_KINDS[code]}{bits // 8}")
    raise DtypeError(
        f"{name} of DLPack type code {code} with {bits} bits and {element.lanes} lanes",
        "float16, bfloat16, float32, float64",
        "convert q, k and v to one of them",
    )
